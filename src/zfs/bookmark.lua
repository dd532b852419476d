-- Makes bookmarks of snapshots by name and guid, in one transaction group. Arguments: for each a snapshot, =guid and the
-- bookmark, with their datasets' names.
local argv = (...)["argv"]
local said = {}
local number = 0
for at = 1, #argv - 2, 3 do
  number = number + 1
  if not zfs.exists(argv[at]) then
    said[number] = "gone"
  elseif "=" .. tostring(zfs.get_prop(argv[at], "guid")) ~= argv[at + 1] then
    said[number] = "another"
  else
    local failed = zfs.sync.bookmark(argv[at], argv[at + 2])
    said[number] = failed == 0 and "made" or "failed " .. failed
  end
end
return said
