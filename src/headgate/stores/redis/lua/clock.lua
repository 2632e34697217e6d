-- Steady and alive time, as core/clock.py tells them.

local function steady_time(elapsed, wall)
  local passed = elapsed - steady[2]
  if passed < 0 then
    steady[1] = steady[1] - passed
  elseif passed > LEAP_US then
    local wall_passed = wall - steady[3]
    if passed > wall_passed + LEAP_US then
      steady[1] = steady[1] - (passed - max(wall_passed, 0))
    end
  end
  steady[2], steady[3] = elapsed, wall
  return elapsed + steady[1]
end

local function release_hold(instant)
  alive[FROZEN] = alive[FROZEN] + min(max(instant - alive[HELD], 0), alive[CAP])
  alive[HELD] = -1
  alive[SKIP] = 0
end

local function touch()
  if alive[HELD] >= 0 then
    if alive[SKIP] > 0 and at >= alive[SKIP_UNTIL] then
      release_hold(alive[SKIP_UNTIL])
    end
  elseif alive[FLYING] >= CROWD and alive[SEEN] >= LEARNED then
    local patience = max(LEAST_PATIENCE_US, PATIENCE * floor(alive[GAP] / 16))
    if at > max(alive[LAST], alive[SINCE] + floor(alive[LATENCY] / 16)) + patience then
      alive[HELD] = at
    end
  end
end

local function alive_time()
  local held = alive[HELD]
  if held < 0 then
    return at - alive[FROZEN]
  end
  return at - alive[FROZEN] - min(max(at - held, 0), alive[CAP])
end

local function steady_of_alive(instant)
  local then_at = instant + alive[FROZEN]
  if alive[HELD] < 0 or then_at <= alive[HELD] then
    return then_at
  end
  if alive[SKIP] > 0 then
    return then_at + min(max(alive[SKIP_UNTIL] - alive[HELD], 0), alive[CAP])
  end
  return then_at + alive[CAP]
end

local function record_departure()
  alive[FLYING] = alive[FLYING] + 1
  if alive[FLYING] == CROWD then
    alive[SINCE] = at
  end
end

local function record_end()
  if alive[FLYING] > 0 then
    alive[FLYING] = alive[FLYING] - 1
  end
end

local function record_answer(granted_at)
  local latency, last = floor(alive[LATENCY] / 16), alive[LAST]
  alive[LAST] = at
  alive[SEEN] = alive[SEEN] + 1
  alive[LATENCY] = alive[LATENCY] + at - granted_at - latency
  local mean = floor(alive[GAP] / 16)
  if alive[HELD] < 0 then
    if alive[FLYING] >= CROWD then
      local gap = at - max(last, alive[SINCE] + latency)
      if gap >= 0 then
        alive[GAP] = alive[GAP] + gap - mean
      end
    end
    return at - alive[FROZEN]
  end
  if alive[SKIP] > 0 then
    alive[SKIP] = alive[SKIP] - 1
  else
    local silence = at - alive[HELD]
    alive[SKIP] = min(floor(silence / max(mean, 1)), alive[FLYING])
    alive[SKIP_UNTIL] = at + floor(silence / CATCH_UP)
  end
  if alive[SKIP] == 0 then
    release_hold(at)
  end
  return alive_time()
end
