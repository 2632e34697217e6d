-- Calls that are on their way, as core/limits/base.py keeps them. The tail of a part begins at rule[R_BASE]:
-- total, first slot not yet lapsed, those of the total that lapse, slot sums.

local kinds = {} -- how each kind of rule answers, made when a plan first has one

local function let_lapse(rule, part, cost)
  local base = rule[R_BASE]
  local slot = floor(alive_at / rule[R_SLOT_US])
  if part[base + 2] == 0 then
    part[base + 1] = slot
  end
  part[base + 2] = part[base + 2] + cost
  local place = base + 3 + slot % rule[R_SIZE]
  part[place] = part[place] + cost
  return slot
end

local function hold(rule, part, cost)
  local base = rule[R_BASE]
  part[base] = part[base] + cost
  if rule[R_PINS] == 1 then
    return -1
  end
  return let_lapse(rule, part, cost)
end

local function abandon_holds(rule, part, units)
  local base = rule[R_BASE]
  let_lapse(rule, part, min(units, part[base] - part[base + 2]))
end

-- Whether the oldest slot has lapsed.
local function lapse_due(rule, part)
  local base = rule[R_BASE]
  return part[base + 2] > 0 and alive_at - rule[R_TRANSIT] >= (part[base + 1] + 1) * rule[R_SLOT_US]
end

-- Take away the oldest hold that has lapsed by `instant` (alive time `alive_instant`): when, how many units.
local function next_lapse(rule, part, instant, alive_instant)
  local base = rule[R_BASE]
  if part[base + 2] == 0 then
    return nil
  end
  local slot_us, size = rule[R_SLOT_US], rule[R_SIZE]
  local done = floor((alive_instant - rule[R_TRANSIT]) / slot_us)
  local first = part[base + 1]
  for slot = first, min(done, first + size) - 1 do
    local place = base + 3 + slot % size
    local cost = part[place]
    if cost ~= 0 then
      part[place] = 0
      part[base] = part[base] - cost
      part[base + 2] = part[base + 2] - cost
      part[base + 1] = part[base + 2] ~= 0 and slot + 1 or done
      return min(instant, (slot + 1) * slot_us + rule[R_TRANSIT] + instant - alive_instant), cost
    end
  end
  part[base + 1] = max(first, done)
  return nil
end

-- All holds by the instant at which they lapse if no answer comes: instants, units, how many.
local function lapses_to_come(rule, part)
  local base = rule[R_BASE]
  local instants, units, found = {}, {}, 0
  local left = part[base + 2]
  if left ~= 0 then
    local first, slot_us, size = part[base + 1], rule[R_SLOT_US], rule[R_SIZE]
    for slot = first, first + size - 1 do
      local cost = part[base + 3 + slot % size]
      if cost ~= 0 then
        found = found + 1
        instants[found] = steady_of_alive((slot + 1) * slot_us + rule[R_TRANSIT])
        units[found] = cost
        left = left - cost
        if left == 0 then
          break
        end
      end
    end
  end
  local pinned = part[base] - part[base + 2]
  if pinned ~= 0 then
    found = found + 1
    instants[found], units[found] = NEVER, pinned
  end
  return instants, units, found
end

local function fresh_holds(rule, part)
  for place = #part + 1, #part + 3 + rule[R_SIZE] do
    part[place] = 0
  end
  return part
end

local function since(now, before)
  return (now - before) % TURN
end

-- A call has ended: true if that takes its hold away, false if it had lapsed, nil if it stays until it lapses.
local function end_call(rule, part, cost, slot, outcome, charge)
  part[ANSWERED] = (part[ANSWERED] + max(charge, cost)) % TURN
  if charge > cost then
    part[GIVEN] = (part[GIVEN] + charge - cost) % TURN
  end
  if outcome == OUTCOME_LOST then
    part[LOST] = at + 2 * rule[R_TRANSIT]
    if slot < 0 then
      let_lapse(rule, part, cost)
    end
    return nil
  end
  local base = rule[R_BASE]
  if slot >= 0 then
    if slot < part[base + 1] then
      return false
    end
    part[base + 2] = part[base + 2] - cost
    local place = base + 3 + slot % rule[R_SIZE]
    part[place] = part[place] - cost
  end
  part[base] = part[base] - cost
  return true
end

local function overlapping(rule, part, cost, answered_before)
  return since(part[GIVEN], answered_before) - (rule[R_LATE] == 1 and 0 or cost)
end
