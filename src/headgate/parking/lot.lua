-- The verbs of a lot for Redis 6.2 and later, Valkey included. They do what rules.py does, to the last digit;
-- the tests hold the two together. The reasons stand there and are not repeated.
--
-- KEYS: head (a hash), tasks (id -> facts, as text), bodies (id -> body), and the order of ids: those that wait
-- by place, those that are out and those that have left by instant. ARGV: verb, now in µs (empty where the
-- server's clock is to be read), then constants, then what the verb takes.
--
-- Numbers are whole and below 2^53; "%.0f" writes them whole, where tostring would cut them to 14 digits.

local call, format, match = redis.call, string.format, string.match
local HEAD, TASKS, BODIES, WAITING, OUT, LEFT = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local ORDER = {['0'] = WAITING, ['1'] = OUT, ['2'] = LEFT}
local keep, releaser_us, trim, fade = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]

local elapsed = tonumber(ARGV[2])
if not elapsed then
  local time = call('TIME')
  elapsed = time[1] * 1000000 + time[2]
end

local found = call('HMGET', HEAD, 'place', 'shift', 'seen', 'until', 'releaser', 'fades', 'lease', 'lag')
local head = {
  place = tonumber(found[1] or 0), shift = tonumber(found[2] or 0), seen = tonumber(found[3] or 0),
  ['until'] = tonumber(found[4] or 0), releaser = found[5] or '', fades = found[6],
  lease = tonumber(found[7] or 0), lag = tonumber(found[8] or 0),
}
local behind = head.seen - elapsed
if behind < 0 then behind = 0 end
local at = elapsed + head.shift + behind

local function whole(number) return format('%.0f', number) end

local function read(text)
  local state, release, place, since, till, costs = match(text, '^(%d) (%d+) (%d+) (%d+) (%d+) (.*)$')
  return {
    state = state, release = tonumber(release), place = tonumber(place), since = tonumber(since),
    till = tonumber(till), costs = costs,
  }
end

local function text_of(task)
  return format('%s %.0f %.0f %.0f %.0f %s',
    task.state, task.release, task.place, task.since, task.till, task.costs)
end

-- What is known of an id, and the state that it stands under, known or not.
local function find(id)
  local text = call('HGET', TASKS, id)
  if not text then return nil, nil end
  local task = read(text)
  if task.state == '2' and task.till <= at then return nil, task.state end
  return task, task.state
end

local function put(id, task, before)
  if before and before ~= task.state then call('ZREM', ORDER[before], id) end
  call('ZADD', ORDER[task.state], whole(task.state == '0' and task.place or task.till), id)
  local text = text_of(task)
  call('HSET', TASKS, id, text)
  return text
end

local function is_empty()
  return call('EXISTS', WAITING, OUT) == 0
end

local function save()
  local old = call('ZRANGEBYSCORE', LEFT, '-inf', whole(at), 'LIMIT', 0, trim)
  if #old > 0 then
    call('ZREM', LEFT, unpack(old))
    call('HDEL', TASKS, unpack(old))
  end
  call('HSET', HEAD, 'place', whole(head.place), 'shift', whole(head.shift + behind), 'seen', whole(elapsed),
    'until', whole(head['until']), 'releaser', head.releaser, 'lease', whole(head.lease),
    'lag', whole(head.lag))
  -- What waits or is out is kept for ever; else all goes a day after it was last touched.
  if is_empty() then
    call('HSET', HEAD, 'fades', '1')
    for _, name in ipairs(KEYS) do call('EXPIRE', name, fade) end
  elseif head.fades then
    call('HDEL', HEAD, 'fades')
    for _, name in ipairs(KEYS) do call('PERSIST', name) end
  end
end

local function tell()
  redis.pcall('PUBLISH', 'headgate:parking', HEAD)  -- whoever may not goes without
end

local function is_stale(task, release)
  return task.release > release or (task.state == '0' and task.release == release)
end

local function bury(id, task, before, release)
  put(id, {
    state = '2', release = release, place = task and task.place or 0, since = 0, till = at + keep, costs = '',
  }, before)
  call('HDEL', BODIES, id)
  save()
  if task and task.state ~= '2' then tell() end
end

-- Facts of many ids: a call takes no more than some thousands at once.
local function texts(ids)
  local all = {}
  for first = 1, #ids, 1000 do
    local last = math.min(first + 999, #ids)
    for _, text in ipairs(call('HMGET', TASKS, unpack(ids, first, last))) do all[#all + 1] = text end
  end
  return all
end

local function with_texts(ids)
  local all = {}
  for place, text in ipairs(texts(ids)) do
    if text then
      all[#all + 1] = ids[place]
      all[#all + 1] = text
    end
  end
  return all
end

local function first_waiting(most)
  if most == 0 then return {} end
  return call('ZRANGE', WAITING, 0, most - 1)
end

local function sight(parked, lapsed)
  local out = call('ZRANGEBYSCORE', OUT, '(' .. whole(at), '+inf', 'WITHSCORES')
  local ids = {}
  for place = 1, #out, 2 do ids[#ids + 1] = out[place] end
  local costs, deadlines = {}, {}
  for place, text in ipairs(texts(ids)) do
    if text then
      costs[#costs + 1] = read(text).costs
      deadlines[#deadlines + 1] = tonumber(out[2 * place])
    end
  end
  return {
    elapsed, at, head.releaser, head['until'], call('ZCARD', WAITING) + call('ZCARD', OUT) - #ids,
    deadlines, costs, head.lag, parked, lapsed,
  }
end

local verb, id = ARGV[1], ARGV[7]

if verb == 'enter' then
  local release = tonumber(ARGV[8])
  local task = find(id)
  if not task then
    if release == 0 and not is_empty() then return {elapsed, 'behind'} end
    return {elapsed, 'go'}
  end
  return {elapsed, is_stale(task, release) and 'stale' or 'go'}
end

if verb == 'park' then
  local release, place = tonumber(ARGV[8]), tonumber(ARGV[9])
  local task, before = find(id)
  if task and is_stale(task, release) then return {elapsed, task.place} end
  place = place or head.place + 1
  if place > head.place then head.place = place end
  local since = at
  if task and task.state ~= '2' then since = task.since end
  put(id, {state = '0', release = release, place = place, since = since, till = 0, costs = ARGV[10]}, before)
  call('HSET', BODIES, id, ARGV[11])
  save()
  tell()
  return {elapsed, place}
end

if verb == 'take' then
  local owner, most, lease = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9])
  if head.releaser ~= owner and at < head['until'] then return sight({}, {}) end
  head.releaser, head['until'], head.lease = owner, at + releaser_us, lease
  for _, late in ipairs(call('ZRANGEBYSCORE', OUT, '-inf', whole(at))) do
    local task = find(late)
    if task then
      task.state, task.till = '0', 0
      put(late, task, '1')
    else
      call('ZREM', OUT, late)
    end
  end
  local parked = {}
  for _, next in ipairs(first_waiting(most)) do
    local task = find(next)
    local body = call('HGET', BODIES, next)
    if task and body then
      task.state, task.till, task.release = '1', at + lease, task.release + 1
      parked[#parked + 1] = next
      parked[#parked + 1] = put(next, task, '0')
      parked[#parked + 1] = body
    else
      call('ZREM', WAITING, next)  -- the server has thrown it away
    end
  end
  save()
  return sight(parked, {})
end

if verb == 'peek' then
  return sight(with_texts(first_waiting(tonumber(ARGV[7]))),
    with_texts(call('ZRANGEBYSCORE', OUT, '-inf', whole(at))))
end

if verb == 'leave' then
  local release = tonumber(ARGV[8])
  local task, before = find(id)
  if task and task.release > release then return {elapsed, 0} end
  if task and task.state == '1' then
    local lag = math.max(at - tonumber(ARGV[9]) - (task.till - head.lease), 0)
    head.lag = math.max(lag, head.lag - math.floor((head.lag - lag) / 8))
  end
  bury(id, task, before, release)
  return {elapsed, 1}
end

if verb == 'overtake' then
  head.lag = math.max(head.lag, head.lease)
  save()
  return {elapsed}
end

if verb == 'resign' then
  if head.releaser == ARGV[7] and at < head['until'] then
    head['until'] = at
    save()
    tell()
  end
  return {elapsed}
end

if verb == 'drop' then
  local task, before = find(id)
  bury(id, task, before, tonumber(ARGV[8]))
  return {elapsed, task and task.state ~= '2' and 1 or 0}
end
