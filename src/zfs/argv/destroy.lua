-- Destroys snapshots of one dataset by name and guid, in one transaction group, so that nobody can rename, hold, clone
-- or replace anything between the checks and the destroy. Arguments: the dataset; "all" (all snapshots or none) or
-- "each"; the number of snapshots that must exist; these snapshots; then the snapshots to destroy; each as @name and
-- =guid.
local argv = (...)["argv"]
local dataset, how, guards = argv[1], argv[2], tonumber(argv[3])

local function fate(name, guid)
  if not zfs.exists(name) then
    return "gone"
  elseif "=" .. tostring(zfs.get_prop(name, "guid")) ~= guid then
    return "another"
  elseif zfs.get_prop(name, "userrefs") ~= 0 then
    return "held"
  elseif zfs.get_prop(name, "numclones") ~= 0 then
    return "cloned"
  end
  local errno = zfs.check.destroy(name)
  if errno == 0 then
    return "doomed"
  end
  -- EBUSY: it is mounted, or something has it open.
  return errno == 16 and "busy" or "failed " .. errno
end

local fates = {}
local first = 4 + 2 * guards
for at = 4, first - 2, 2 do
  local name = dataset .. argv[at]
  if not zfs.exists(name) or "=" .. tostring(zfs.get_prop(name, "guid")) ~= argv[at + 1] then
    return fates
  end
end
local blocked = false
local number = 0
for at = first, #argv - 1, 2 do
  number = number + 1
  fates[number] = fate(dataset .. argv[at], argv[at + 1])
  blocked = blocked or fates[number] ~= "doomed" and fates[number] ~= "gone"
end
if how == "all" and blocked then
  return fates
end
number = 0
for at = first, #argv - 1, 2 do
  number = number + 1
  if fates[number] == "doomed" then
    local errno = zfs.sync.destroy(dataset .. argv[at])
    fates[number] = errno == 0 and "destroyed" or "failed " .. errno
  end
end
return fates
