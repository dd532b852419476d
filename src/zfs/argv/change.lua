-- Makes bookmarks of snapshots by name and guid, and sets users' properties, in one transaction group. Arguments, by
-- threes: a snapshot, =guid and the bookmark, all with their datasets' names; or a dataset, the property and =value.
local argv = (...)["argv"]
local said = {}
local number = 0
for at = 1, #argv - 2, 3 do
  local name, second, third = argv[at], argv[at + 1], argv[at + 2]
  local failed
  number = number + 1
  if not zfs.exists(name) then
    said[number] = "gone"
  elseif string.sub(second, 1, 1) ~= "=" then
    failed = zfs.sync.set_prop(name, second, string.sub(third, 2))
  elseif "=" .. tostring(zfs.get_prop(name, "guid")) == second then
    failed = zfs.sync.bookmark(name, third)
  else
    said[number] = "another"
  end
  if failed then
    said[number] = failed == 0 and "done" or "failed " .. failed
  end
end
return said
