-- What every script begins with: the call's numbers, and the state of its key as locals of all functions.
--
-- KEYS: the state, the mark that there was one, this client's last answer. ARGV: the plan (MessagePack), the
-- call (doubles), the client's name. Names in capitals are numbers, put in by script.py; most are the core's.
-- Lua's numbers are doubles: whole below 2^53, and so is all that is computed here. floor(a / b) is exact as
-- long as |a| + b stays below it, and x % y is never negative, both as in Python.

local floor, min, max = math.floor, math.min, math.max
local call = redis.call

local function numbers(text)
  local found, at, left = {}, 1, #text / 8
  while left > 0 do
    local count = min(left, CHUNK)
    local part = { struct.unpack('<' .. string.rep('d', count), text, at) }
    at = part[count + 1]
    part[count + 1] = nil
    left = left - count
    if left == 0 and #found == 0 then
      return part
    end
    for index = 1, count do
      found[#found + 1] = part[index]
    end
  end
  return found
end

local function packed(list, count)
  if count <= CHUNK then
    return struct.pack('<' .. string.rep('d', count), unpack(list, 1, count))
  end
  local parts = {}
  for from = 1, count, CHUNK do
    local to = min(from + CHUNK - 1, count)
    parts[#parts + 1] = struct.pack('<' .. string.rep('d', to - from + 1), unpack(list, from, to))
  end
  return table.concat(parts)
end

local plan_digest, digests, longest_transit, rules = unpack(cmsgpack.unpack(ARGV[1]))
local args = numbers(ARGV[2])
local client = ARGV[3]
local lease_us = args[A_LEASE]
local count = #rules

-- The state: what core/decide.py keeps for a key, and a few facts of this store.
local steady, alive, parts, gates, shut
local epochs, shares, served, floors, members
local generation, born_at, mark_until, shelf
local at, alive_at -- the present instant, set by advance()

-- The present by the store's two clocks. The server's TIME is both, read once, so that all who share a key
-- share a clock; tests bring their own.
local elapsed_us, wall_us = args[A_ELAPSED], args[A_WALL]
if elapsed_us < 0 then
  local time = call('TIME')
  elapsed_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
  wall_us = elapsed_us
end

-- Where the call's own numbers begin, and the windows of calendar limits by rule: {begin, end, begin, end …}.
local body = A_HEAD + 1
local adopted
if args[A_ADOPT] > 0 then
  adopted = body - 1
  body = body + count
end
local windows = {}
for index = 1, count do
  if rules[index][R_CALENDAR] == 1 then
    local edges = {}
    for place = 1, 2 * args[body] do
      edges[place] = args[body + place]
    end
    windows[index] = edges
    body = body + 1 + #edges
  end
end
