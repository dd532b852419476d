-- Makes bookmarks of snapshots by name and guid, and sets user properties that have other values, in one transaction
-- group. Arguments, in groups of three: a snapshot, =guid and the bookmark, with full names; or a dataset, the property and =value.
local argv = (...)["argv"]
local results = {}
local number = 0
for at = 1, #argv - 2, 3 do
  local name, second, third = argv[at], argv[at + 1], argv[at + 2]
  local errno
  number = number + 1
  if not zfs.exists(name) then
    results[number] = "gone"
  elseif string.sub(second, 1, 1) ~= "=" then
    local value, of
    -- For native properties, the command is needed in any case.
    if string.find(second, ":", 1, true) then
      value, of = zfs.get_prop(name, second)
    end
    errno = 0
    if value ~= string.sub(third, 2) or of ~= name then
      errno = zfs.sync.set_prop(name, second, string.sub(third, 2))
    end
  elseif "=" .. tostring(zfs.get_prop(name, "guid")) == second then
    errno = zfs.sync.bookmark(name, third)
  else
    results[number] = "another"
  end
  if errno then
    results[number] = errno == 0 and "done" or "failed " .. errno
  end
end
return results
