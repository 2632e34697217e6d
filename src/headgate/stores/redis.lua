-- The rules of headgate.core, as one script for Redis 6.2 and later, Valkey included.
--
-- What a call decides here is what core/together.py, core/decide.py, core/clock.py, core/crowd.py and
-- core/limits/ decide for the same state at the same instant, to the last digit; the tests hold the two
-- together step by step. The reasons for the rules stand there and are not repeated. What happens rarely is
-- not here: new states, changed limits and lost states are made by the core and put in place by "put".
--
-- Numbers are whole and below 2^53, so that a double is as exact as Python's int. They are never turned into
-- text: that would cut them to 14 digits.
--
-- One value holds all of a key. It is a row of msgpack values without a head, and so are the strings in it
-- ("cells"): a row is read into a table of the right size at once, and a cell that nobody looks into is
-- copied as it is. That is why a window's 520 slots cost no more than two dozen numbers do.
--
-- `local NAME <const> = …` is a name for a number. Lua 5.1 does not know it: whoever loads the script puts the
-- numbers in the names' places, so that they cost neither a variable nor a look into one.
--
-- The server runs all of this file for each call, and makes each function anew. That takes the longer the more
-- variables of the function around it they use: so these are few, they are tables, and almost everything is inside
-- of `run`, for what is outside of that is handed on at no price. A kind of rule is only made if it is used.

local floor, sub = math.floor, string.sub
local pack, unpack, spread = cmsgpack.pack, cmsgpack.unpack, unpack

local NEVER <const> = 4503599627370496       -- 2^52
local TURN <const> = 1125899906842624        -- 2^50

-- The answers of this script: the first item of its reply.
local DONE <const> = 0
local ABSENT <const> = 1                     -- there is no state
local BEHIND <const> = 2                     -- it knows less than one that the caller has seen
local OTHER <const> = 3                      -- it is of other limits
local EDGES <const> = 4                      -- an edge of a calendar is missing
local CHANGED <const> = 5                    -- somebody else was faster
local FOREIGN_FORMAT <const> = 6             -- another headgate wrote it

-- ARGV[1], the question; what follows these depends on the verb.
local VERB <const> = 1
local CLIENT <const> = 2
local LEASE <const> = 3                      -- µs
local KNOWN_GENERATION <const> = 4
local KNOWN_VERSION <const> = 5
local EXPECTED <const> = 6                   -- fingerprint of the caller's limits
local NOW <const> = 7                        -- elapsed µs and wall µs; false where the server's clock is to be read
local SEQUENCE <const> = 9
local REPORTS <const> = 10                   -- how many reports follow
local HOLDING <const> = 11                   -- how many numbers of what is held follow; -1 for none
local LINES <const> = 12                     -- how many lines follow
local QUESTION <const> = 12                  -- length of all that

local TRADE <const> = 1                      -- together.trade
local ALONE <const> = 2                      -- decide.settle, then decide.acquire
local LEAVE <const> = 3                      -- together.leave
local GET <const> = 4                        -- State.dump
local PUT <const> = 5                        -- what State.dump gave, if nobody has written since
local FORGET <const> = 6                     -- likewise

-- The value of KEYS[1].
local FORMAT <const> = 1
local GENERATION <const> = 2                 -- tells this state from one that was made after a loss
local VERSION <const> = 3                    -- counts writes
local FINGERPRINT <const> = 4                -- of the limits
local ABOUT <const> = 5                      -- whatever the callers keep beside it
local MARKED <const> = 6                     -- when KEYS[2] was last written
local SHIFT <const> = 7                      -- steady time
local ELAPSED <const> = 8
local WALL <const> = 9
local FROZEN <const> = 10                    -- alive time
local HELD <const> = 11
local FLYING <const> = 12
local LAST <const> = 13
local GAP <const> = 14
local LATENCY <const> = 15
local SEEN <const> = 16
local SKIP <const> = 17
local SKIP_UNTIL <const> = 18
local SINCE <const> = 19
local CAP <const> = 20
local PAUSED <const> = 21
local GRANTS <const> = 22                    -- tally
local SETTLED <const> = 23
local REFUSED <const> = 24
local REFUSALS <const> = 25                  -- a cell: three numbers for each refusal
local GATES <const> = 26                     -- a cell: three numbers for each rule, or nothing if all are open
local CROWD <const> = 27                     -- a cell, or nothing
local PARTS <const> = 27                     -- and then a cell for each rule
local ALIVE_END <const> = 20

local FORMAT_NOW <const> = 1
local UNKNOWING <const> = 102                -- "f", with which the generation begins of a state that was made anew

-- A rule, as the caller tells it (ARGV[2]).
local KIND <const> = 1
local LARGEST <const> = 2
local PINS <const> = 3
local TRANSIT <const> = 4
local SLOT <const> = 5
local SIZE <const> = 6
local LAPSES <const> = 7
local LATE <const> = 8
local BASE <const> = 9                       -- where the holds begin in its part
local GIVEN <const> = 10                     -- where these stand in its part
local ANSWERED <const> = 11
local LOST <const> = 12

local BUCKET <const> = 1
local SLIDING <const> = 2
local FIXED <const> = 3
local SLOTS <const> = 4

-- What a rule answers: functions of (rule, part, …) in this order; false where it has nothing to say.
local ADVANCE <const> = 1
local ADMITS <const> = 2
local OPENS <const> = 3
local FIRM <const> = 4
local TAKE <const> = 5
local SETTLE <const> = 6
local READ <const> = 7
local REFUSES <const> = 8
local ABANDON <const> = 9
local ADOPT <const> = 10
local OVERDUE <const> = 11
local LEAPT <const> = 12
local EDGE <const> = 13
local USED <const> = 14
local MARKS <const> = 15                     -- how many marks a grant of it carries

local IS_ANSWERED <const> = 0                -- outcomes
local IS_LOST <const> = 1
local IS_UNSENT <const> = 2

local state                                  -- the value, as a row
local rules, parts, methods = {}, {}, {}     -- of each limit: its numbers, its state, and what it answers

-- What else there is to know of this call:
-- now, wall, at, alive_at: the instant, by the two clocks, in steady time and in alive time;
-- question: the row of ARGV[1];
-- shut: how many gates are not open, the pause included; gates: their row, nil while all are open;
-- the rest belongs to the report, or to the crowd, that is looked at.
local its = { now = 0, wall = 0, at = 0, alive_at = false, question = false, shut = 0, gates = false, crowd = false }

local opened, openings = {}, 0               -- cells that somebody has looked into: table, index, table, index, …

local cells, holds, clock, decide, crowds, turns

local function run()


-- Rows and cells

local MOST <const> = 4000                    -- Lua's stack holds 8000; a longer row keeps its head

cells = {
  read = function(text)
    local found = { unpack(text) }
    local first = found[1]
    if type(first) == 'table' then
      return first
    end
    return found
  end,

  text = function(found)
    local size = #found
    if size < 16 then
      return sub(pack(found), 2)
    elseif size <= MOST then
      return sub(pack(found), 4)
    end
    return pack(found)
  end,

  -- The cell at an index of a part, as a table.
  open = function(part, index)
    local cell = part[index]
    if cell[1] == nil then  -- still a string
      cell = { unpack(cell) }
      part[index] = cell
      opened[openings + 1], opened[openings + 2] = part, index
      openings = openings + 2
    end
    return cell
  end,
}


-- Holds (core/limits/base.py): total, first slot not yet lapsed, those of the total that lapse, the slots' cell

holds = {
  let_lapse = function(rule, part, cost, alive)
    local base = rule[BASE]
    local slot = floor(alive / rule[SLOT])
    if part[base + 2] == 0 then
      part[base + 1] = slot
    end
    part[base + 2] = part[base + 2] + cost
    local slots, index = cells.open(part, base + 3), slot % rule[SIZE] + 1
    slots[index] = slots[index] + cost
    return slot
  end,

  put = function(rule, part, cost, alive)
    local base = rule[BASE]
    part[base] = part[base] + cost
    if rule[LAPSES] then
      return holds.let_lapse(rule, part, cost, alive)
    end
    return -1
  end,

  next_lapse = function(rule, part, steady, alive)
    local base = rule[BASE]
    if part[base + 2] == 0 then
      return nil
    end
    local size, width, transit = rule[SIZE], rule[SLOT], rule[TRANSIT]
    local done, slot = floor((alive - transit) / width), part[base + 1]
    if slot < done then
      local slots = cells.open(part, base + 3)
      local stop = slot + size  -- those behind it are the same ones
      while slot < done and slot < stop do
        local index = slot % size + 1
        local cost = slots[index]
        slot = slot + 1
        if cost ~= 0 then
          slots[index] = 0
          part[base] = part[base] - cost
          part[base + 2] = part[base + 2] - cost
          part[base + 1] = part[base + 2] ~= 0 and slot or done
          local instant = slot * width + transit + steady - alive
          return instant < steady and instant or steady, cost
        end
      end
      part[base + 1] = done
    end
    return nil
  end,

  -- All holds by the instant at which they lapse, as instant, units, instant, units, …
  lapses_to_come = function(rule, part)
    local base, found, n = rule[BASE], {}, 0
    local left = part[base + 2]
    if left ~= 0 then
      local first, size, width, transit = part[base + 1], rule[SIZE], rule[SLOT], rule[TRANSIT]
      local slots = cells.open(part, base + 3)
      for slot = first, first + size - 1 do
        local cost = slots[slot % size + 1]
        if cost ~= 0 then
          found[n + 1], found[n + 2] = clock.steady_of_alive((slot + 1) * width + transit), cost
          n = n + 2
          left = left - cost
          if left == 0 then
            break
          end
        end
      end
    end
    local pinned = part[base] - part[base + 2]
    if pinned ~= 0 then
      found[n + 1], found[n + 2] = NEVER, pinned
      n = n + 2
    end
    return found, n
  end,

  abandon = function(rule, part, units, alive)
    local pinned = part[rule[BASE]] - part[rule[BASE] + 2]
    holds.let_lapse(rule, part, units < pinned and units or pinned, alive)
  end,

  adopt = function(rule, part, units)
    local base, given = rule[BASE], rule[GIVEN]
    part[base] = part[base] + units
    part[given] = (part[given] + units) % TURN
  end,

  -- Calls.end: true or false as Holds.lift says, nil if the hold stays.
  finish = function(rule, part, cost, slot, outcome, charge, steady, alive)
    local answered = rule[ANSWERED]
    part[answered] = (part[answered] + (charge > cost and charge or cost)) % TURN
    if charge > cost then
      local given = rule[GIVEN]
      part[given] = (part[given] + charge - cost) % TURN
    end
    if outcome == IS_LOST then
      part[rule[LOST]] = steady + 2 * rule[TRANSIT]
      if slot < 0 then
        holds.abandon(rule, part, cost, alive)
      end
      return nil
    end
    local base = rule[BASE]
    if slot >= 0 then
      if slot < part[base + 1] then
        return false
      end
      part[base + 2] = part[base + 2] - cost
      local slots, index = cells.open(part, base + 3), slot % rule[SIZE] + 1
      slots[index] = slots[index] - cost
      part[base] = part[base] - cost
    else
      local pinned = part[base] - part[base + 2]
      part[base] = part[base] - (cost < pinned and cost or pinned)
    end
    return true
  end,

  overlapping = function(rule, part, cost, answered_before)
    return (part[rule[GIVEN]] - answered_before) % TURN - (rule[LATE] and 0 or cost)
  end,
}


-- Token bucket and small bucket (core/limits/token_bucket.py)

local B_LEVEL <const> = 1
local B_AT <const> = 2
local B_PROBE <const> = 3
local B_LIFT <const> = 4
local B_GIVEN <const> = 5
local B_ANSWERED <const> = 6
local B_DEBITED <const> = 7
local B_LOST <const> = 8
local B_HOLDS <const> = 9

local R_BURST <const> = 13
local R_UNIT <const> = 14                    -- ticks
local R_TICKS <const> = 15                   -- in a microsecond
local R_FULL <const> = 16
local R_MOST <const> = 17
local R_STATED <const> = 18                  -- the burst that the limit states, or false
local R_AMOUNT <const> = 19                  -- of a limit of unknown kind, or false

local DEEPEST <const> = -4503599627370496    -- -2^52

local function bucket()
  local function refill(rule, part, steady)
    local passed = steady - part[B_AT]
    if passed > 0 then
      local level, lift, ticks = part[B_LEVEL], part[B_LIFT], rule[R_TICKS]
      local room = (lift ~= 0 and lift or rule[R_FULL]) - level
      if passed <= floor(room / ticks) then
        part[B_LEVEL] = level + passed * ticks
      elseif room > 0 then
        part[B_LEVEL] = level + room
      end
      part[B_AT] = steady
    end
  end

  local function charge(rule, part, units)
    local level, full, most = part[B_LEVEL], rule[R_FULL], rule[R_MOST]
    if part[B_LIFT] ~= 0 and level > full then
      level = full
    end
    level = level - (units < most and units or most) * rule[R_UNIT]
    part[B_LEVEL] = level > DEEPEST and level or DEEPEST
    part[B_DEBITED] = (part[B_DEBITED] + units) % TURN
  end

  local function gather(rule, cost)
    local amount = rule[R_AMOUNT]
    if not amount then
      return cost
    end
    local burst = rule[R_BURST]
    local rate = amount - burst
    rate = rate > 1 and rate or 1
    local rest = amount - cost
    rest = rest > 0 and rest or 0
    local product, root = rest * rate, nil
    if product < NEVER then
      root = floor(math.sqrt(product))
    else
      root = floor(math.sqrt(rest) * math.sqrt(rate)) - 1
    end
    local silence = 2 * (rate + burst - root) + 1
    return cost > silence and cost or silence
  end

  local function settle(rule, part, cost, marks, place, outcome, units, steady, alive)
    local held = holds.finish(rule, part, cost, marks[place], outcome, units, steady, alive)
    if held == nil then
      return
    elseif held then
      if units ~= 0 then
        charge(rule, part, units)
      end
    elseif units > cost then
      charge(rule, part, units - cost)
    elseif units < cost then
      local burst, unit = rule[R_BURST], rule[R_UNIT]
      local later = (part[B_DEBITED] - marks[place + 2]) % TURN - cost
      later = later > 0 and later or 0
      local most = rule[R_FULL] - (later < burst and later or burst) * unit
      local raised = part[B_LEVEL] + (cost - units) * unit
      raised = raised < most and raised or most
      if raised > part[B_LEVEL] then
        part[B_LEVEL] = raised
      end
    end
  end

  return {
    --[[ ADVANCE ]] function(rule, part, steady, alive)
      if part[B_HOLDS] ~= 0 and part[B_HOLDS + 2] > 0
        and alive - rule[TRANSIT] >= (part[B_HOLDS + 1] + 1) * rule[SLOT] then
        local instant, cost = holds.next_lapse(rule, part, steady, alive)
        while instant do
          refill(rule, part, instant)
          charge(rule, part, cost)
          instant, cost = holds.next_lapse(rule, part, steady, alive)
        end
      end
      return refill(rule, part, steady)
    end,

    --[[ ADMITS ]] function(rule, part, cost)
      local held = part[B_HOLDS]
      if held == 0 and part[B_PROBE] ~= 0 then
        return true
      end
      local unit, level = rule[R_UNIT], part[B_LEVEL]
      if cost > rule[R_BURST] then
        local want = gather(rule, cost) * unit
        return part[B_LIFT] >= want and want <= level and held == 0
      end
      if part[B_LIFT] ~= 0 then
        local full = rule[R_FULL]
        part[B_LIFT] = 0
        if level > full then
          level = full
          part[B_LEVEL] = full
        end
      end
      return level >= (cost + held) * unit
    end,

    --[[ OPENS ]] function(rule, part, cost, steady)
      local on_way = part[B_HOLDS]
      if on_way == 0 and part[B_PROBE] ~= 0 then
        return steady
      end
      local unit, ticks, top = rule[R_UNIT], rule[R_TICKS], rule[R_FULL]
      local want, full = cost * unit, top
      if cost > rule[R_BURST] then
        want = gather(rule, cost) * unit
        full = want
        part[B_LIFT] = want
      end
      local level, clock, held = part[B_LEVEL], part[B_AT], on_way * unit
      if full == top and want + held <= full then
        local lack = -floor((level - want - held) / ticks)
        local ready = clock + (lack > 0 and lack or 0)
        return ready > steady and ready or steady
      end
      local lapses, n = holds.lapses_to_come(rule, part)
      lapses[n + 1], lapses[n + 2] = -1, 0
      for index = 1, n + 1, 2 do
        local lapse, units = lapses[index], lapses[index + 1] * unit
        if want + held <= full then
          local lack = -floor((level - want - held) / ticks)
          local ready = clock + (lack > 0 and lack or 0)
          if lapse < 0 or ready <= lapse then
            return ready > steady and ready or steady
          end
        end
        local passed, room = lapse - clock, floor((full - level) / ticks) + 1
        level = level + (passed < room and passed or room) * ticks
        level = (level < full and level or full)
        level = (level < top and level or top) - units
        held = held - units
        clock = lapse
      end
    end,

    --[[ FIRM ]] function(rule, part, cost)
      return (cost + part[B_HOLDS]) * rule[R_UNIT] <= rule[R_FULL]
    end,

    --[[ TAKE ]] function(rule, part, cost, steady, alive, out, n)
      part[B_PROBE] = 0
      local burst = rule[R_BURST]
      if cost > burst then
        local most = cost * rule[R_UNIT]
        if part[B_LEVEL] > most then
          part[B_LEVEL] = most
        end
        part[B_LIFT] = 0
        charge(rule, part, cost - burst)
      end
      part[B_GIVEN] = (part[B_GIVEN] + cost) % TURN
      out[n + 1] = holds.put(rule, part, cost, alive)
      out[n + 2] = part[B_ANSWERED]
      out[n + 3] = part[B_DEBITED]
      return n + 3
    end,

    --[[ SETTLE ]] settle,

    --[[ READ ]] function(rule, part, cost, marks, place, limit, remaining, granted_at, steady)
      local unit, ticks, full, burst = rule[R_UNIT], rule[R_TICKS], rule[R_FULL], rule[R_BURST]
      local held = part[B_HOLDS] * unit
      local left = remaining < burst and remaining or burst
      local refilled, most = steady - granted_at, floor(full / ticks)
      refilled = (refilled < most and refilled or most) * ticks
      local high = (left + 1) * unit + refilled + held
      if high < part[B_LEVEL] then
        part[B_LEVEL] = high
      end
      if limit and limit == rule[R_STATED] and granted_at >= part[B_LOST] then
        local others = holds.overlapping(rule, part, cost, marks[place + 1])
        others = others < 2 * burst and others or 2 * burst
        local low = (left - others) * unit + held
        low = low < full and low or full
        if low > part[B_LEVEL] then
          part[B_LEVEL] = low
        end
      end
    end,

    --[[ REFUSES ]] function(rule, part, cost, marks, place, steady, alive)
      settle(rule, part, cost, marks, place, IS_UNSENT, 0, steady, alive)
      if part[B_LEVEL] > 0 then
        part[B_LEVEL] = 0
      end
      charge(rule, part, cost)
    end,

    --[[ ABANDON ]] holds.abandon,
    --[[ ADOPT ]] holds.adopt,

    --[[ OVERDUE ]] function(rule, part, cost, units)
      if units > cost then
        charge(rule, part, units - cost)
      end
    end,

    --[[ LEAPT ]] false,
    --[[ EDGE ]] false,

    --[[ USED ]] function(rule, part)
      local units = rule[R_BURST] - floor(part[B_LEVEL] / rule[R_UNIT]) + part[B_HOLDS]
      return units > 0 and units or 0
    end,

    --[[ MARKS ]] 3,
  }
end


-- Sliding window (core/limits/sliding_window.py): its two rings stand in cells of twenty slots each

local S_TAIL <const> = 1
local S_LOGGED <const> = 2
local S_GHOSTS <const> = 3
local S_PROBE <const> = 4
local S_GIVEN <const> = 5
local S_ANSWERED <const> = 6
local S_LEFT <const> = 7
local S_LOST <const> = 8
local S_LOG <const> = 9
local S_GHOST <const> = 22
local S_HOLDS <const> = 35
local RING <const> = 260
local CELL <const> = 20
local CELLS <const> = 13

local W_AMOUNT <const> = 13
local W_PERIOD <const> = 14
local W_SLOT <const> = 15

local function sliding()
  local empty = ('\0'):rep(CELL)  -- a cell of zeros

  local function add(rule, part, ring, total, units, instant)
    local slot = -floor(-instant / rule[W_SLOT])
    if slot >= part[S_TAIL] then
      local place = slot % RING
      local index = place % CELL
      local cell = cells.open(part, ring + (place - index) / CELL)
      cell[index + 1] = cell[index + 1] + units
      part[total] = part[total] + units
    else
      part[S_LEFT] = (part[S_LEFT] + units) % TURN
    end
  end

  -- The sum of some slots of a cell, which are left empty.
  local function emptied(part, index, first, last)
    if part[index] == empty then
      return 0
    end
    local cell, sum = cells.open(part, index), 0
    for slot = first, last do
      sum = sum + cell[slot]
      cell[slot] = 0
    end
    return sum
  end

  local function roll(rule, part, steady)
    local tail, old = floor((steady - rule[W_PERIOD]) / rule[W_SLOT]) + 1, part[S_TAIL]
    if tail <= old then
      return
    end
    if part[S_LOGGED] ~= 0 or part[S_GHOSTS] ~= 0 then
      local slot, stop = old, tail < old + RING and tail or old + RING
      while slot < stop do
        local place = slot % RING
        local first = place % CELL
        local cell, last = (place - first) / CELL, first + stop - slot
        last = last < CELL and last or CELL
        local logged = emptied(part, S_LOG + cell, first + 1, last)
        local ghosts = emptied(part, S_GHOST + cell, first + 1, last)
        part[S_LOGGED] = part[S_LOGGED] - logged
        part[S_GHOSTS] = part[S_GHOSTS] - ghosts
        part[S_LEFT] = (part[S_LEFT] + logged + ghosts) % TURN
        slot = slot + last - first
      end
    end
    part[S_TAIL] = tail
  end

  local function pace(rule, part, units, steady)
    local oldest = part[S_TAIL]
    local newest = -floor(-steady / rule[W_SLOT])
    local slots, placed = newest - oldest + 1, 0
    for slot = oldest, newest do
      local due = floor(units * (slot - oldest + 1) / slots)
      if due ~= placed then
        local place = slot % RING
        local index = place % CELL
        local cell = cells.open(part, S_GHOST + (place - index) / CELL)
        cell[index + 1] = cell[index + 1] + due - placed
        placed = due
      end
    end
    part[S_GHOSTS] = part[S_GHOSTS] + units
  end

  local function settle(rule, part, cost, marks, place, outcome, charge, steady, alive)
    local slot, frozen = marks[place], marks[place + 3]
    local held = holds.finish(rule, part, cost, slot, outcome, charge, steady, alive)
    if held == nil then
      return
    elseif held then
      add(rule, part, S_LOG, S_LOGGED, charge, steady)
    elseif charge > cost then
      add(rule, part, S_LOG, S_LOGGED, charge - cost, steady)
    elseif charge < cost and slot >= 0 and frozen == steady - alive then
      local logged = -floor(-((slot + 1) * rule[SLOT] + rule[TRANSIT] + frozen) / rule[W_SLOT])
      if logged >= part[S_TAIL] then
        local found = logged % RING
        local index = found % CELL
        local cell = cells.open(part, S_LOG + (found - index) / CELL)
        local back = cell[index + 1]
        back = cost - charge < back and cost - charge or back
        cell[index + 1] = cell[index + 1] - back
        part[S_LOGGED] = part[S_LOGGED] - back
      end
    end
  end

  return {
    --[[ ADVANCE ]] function(rule, part, steady, alive)
      if part[S_HOLDS] ~= 0 and part[S_HOLDS + 2] > 0
        and alive - rule[TRANSIT] >= (part[S_HOLDS + 1] + 1) * rule[SLOT] then
        local instant, cost = holds.next_lapse(rule, part, steady, alive)
        while instant do
          roll(rule, part, instant)
          add(rule, part, S_LOG, S_LOGGED, cost, instant)
          instant, cost = holds.next_lapse(rule, part, steady, alive)
        end
      end
      return roll(rule, part, steady)
    end,

    --[[ ADMITS ]] function(rule, part, cost)
      local held = part[S_HOLDS]
      return (held == 0 and part[S_PROBE] ~= 0)
        or part[S_LOGGED] + part[S_GHOSTS] + held + cost <= rule[W_AMOUNT]
    end,

    --[[ OPENS ]] function(rule, part, cost, steady)
      local held = part[S_HOLDS]
      local over = part[S_LOGGED] + part[S_GHOSTS] + held + cost - rule[W_AMOUNT]
      if over <= 0 or (held == 0 and part[S_PROBE] ~= 0) then
        return steady
      end
      local slot, period = part[S_TAIL], rule[W_PERIOD]
      local stop = slot + RING
      while slot < stop do
        local place = slot % RING
        local first = place % CELL
        local cell, last = (place - first) / CELL, first + stop - slot
        last = last < CELL and last or CELL
        if part[S_LOG + cell] ~= empty or part[S_GHOST + cell] ~= empty then
          local log, ghost = cells.open(part, S_LOG + cell), cells.open(part, S_GHOST + cell)
          for index = first + 1, last do
            over = over - log[index] - ghost[index]
            if over <= 0 then
              local leaves = (slot + index - first - 1) * rule[W_SLOT] + period
              return leaves > steady and leaves or steady
            end
          end
        end
        slot = slot + last - first
      end
      local lapses, n = holds.lapses_to_come(rule, part)
      for index = 1, n, 2 do
        over = over - lapses[index + 1]
        if over <= 0 then
          local lapse, width = lapses[index], rule[W_SLOT]
          if lapse == NEVER then
            return NEVER
          end
          local leaves = -floor(-lapse / width) * width + period
          return leaves > steady and leaves or steady
        end
      end
    end,

    --[[ FIRM ]] function(rule, part, cost)
      return part[S_HOLDS] + cost <= rule[W_AMOUNT]
    end,

    --[[ TAKE ]] function(rule, part, cost, steady, alive, out, n)
      part[S_PROBE] = 0
      part[S_GIVEN] = (part[S_GIVEN] + cost) % TURN
      out[n + 1] = holds.put(rule, part, cost, alive)
      out[n + 2] = part[S_ANSWERED]
      out[n + 3] = part[S_LEFT]
      out[n + 4] = steady - alive
      return n + 4
    end,

    --[[ SETTLE ]] settle,

    --[[ READ ]] function(rule, part, cost, marks, place, limit, remaining, granted_at, steady)
      if limit ~= rule[W_AMOUNT] then
        return
      end
      local stood = limit - remaining
      local others = stood - (part[S_LOGGED] + part[S_GHOSTS] + part[S_HOLDS])
        - (part[S_LEFT] - marks[place + 2]) % TURN
      if others > 0 then
        add(rule, part, S_GHOST, S_GHOSTS, others, steady)
      elseif part[S_GHOSTS] ~= 0 and granted_at >= part[S_LOST] then
        local most = stood + holds.overlapping(rule, part, cost, marks[place + 1])
        local ghosts = most - part[S_LOGGED] - part[S_HOLDS]
        ghosts = ghosts > 0 and ghosts or 0
        if ghosts < part[S_GHOSTS] then
          for cell = S_GHOST, S_GHOST + CELLS - 1 do
            emptied(part, cell, 1, CELL)
          end
          part[S_GHOSTS] = 0
          add(rule, part, S_GHOST, S_GHOSTS, ghosts, steady)
        end
      end
    end,

    --[[ REFUSES ]] function(rule, part, cost, marks, place, steady, alive)
      settle(rule, part, cost, marks, place, IS_ANSWERED, cost, steady, alive)
      local left = rule[W_AMOUNT] - (part[S_LOGGED] + part[S_GHOSTS] + part[S_HOLDS])
      pace(rule, part, left > 0 and left or 0, steady)
    end,

    --[[ ABANDON ]] holds.abandon,
    --[[ ADOPT ]] holds.adopt,

    --[[ OVERDUE ]] function(rule, part, cost, charge)
      if charge > cost then
        add(rule, part, S_LOG, S_LOGGED, charge - cost, part[S_TAIL] * rule[W_SLOT] + rule[W_PERIOD])
      end
    end,

    --[[ LEAPT ]] false,

    --[[ EDGE ]] function(rule, part, steady)
      return steady + rule[W_PERIOD]
    end,

    --[[ USED ]] function(rule, part)
      return part[S_LOGGED] + part[S_GHOSTS] + part[S_HOLDS]
    end,

    --[[ MARKS ]] 4,
  }
end


-- Fixed window (core/limits/fixed_window.py)

local F_START <const> = 1
local F_END <const> = 2
local F_AT <const> = 3
local F_USED <const> = 4
local F_LATE <const> = 5
local F_OFFSET <const> = 6
local F_PACED_FROM <const> = 7
local F_PROBE <const> = 8
local F_GIVEN <const> = 9
local F_ANSWERED <const> = 10
local F_LOST <const> = 11
local F_SEAM <const> = 12
local F_PASSED <const> = 13
local F_DRIFTED <const> = 14
local F_HOLDS <const> = 15
local BY_ELAPSED <const> = 1
local BY_WALL <const> = 2
local BY_BOTH <const> = 3

local C_AMOUNT <const> = 13
local C_PERIOD <const> = 14
local C_UNIT <const> = 15
local C_TICKS <const> = 16
local C_ERROR <const> = 17
local C_WINDOWS <const> = 18                 -- of a calendar: from, until, begin, end (Unix µs), in order; or false

local function fixed()
  -- The window that holds a steady instant, offset being wall less steady time.
  local function window(rule, steady, offset)
    local instant, windows = steady + offset, rule[C_WINDOWS]
    if not windows then
      local period = rule[C_PERIOD]
      local begin = floor(instant / period) * period - offset
      return begin, begin + period
    end
    for index = 1, #windows, 4 do
      if instant < windows[index + 1] then
        if instant < windows[index] then
          break
        end
        return windows[index + 2] - offset, windows[index + 3] - offset
      end
    end
    error({ instant })
  end

  local function drift(part)
    local differ = part[F_DRIFTED] - part[F_OFFSET]
    return differ < 0 and -differ or differ
  end

  local function guard(rule, part)
    local differ, wrong = drift(part), rule[C_ERROR]
    return wrong + (differ < wrong and differ or wrong)
  end

  local function first_edge(rule, part)
    local edge = part[F_END]
    if drift(part) > rule[C_ERROR] then
      local _, by_wall = window(rule, part[F_AT], part[F_DRIFTED])
      return by_wall < edge and by_wall or edge
    end
    return edge
  end

  local function turn(part, used)
    part[F_USED] = used
    part[F_LATE] = 0
    part[F_PACED_FROM] = -1
  end

  local function advance_in_doubt(rule, part, steady)
    local seam = window(rule, its.wall, 0)
    local passed, before = 0, part[F_PASSED]
    local by_elapsed, by_wall = steady >= part[F_END], seam ~= part[F_SEAM]
    if not (by_elapsed or by_wall) then
      return
    end
    if before == 0 then
      part[F_LATE] = part[F_LATE] + part[F_HOLDS]
    end
    part[F_SEAM] = seam
    if by_elapsed then
      part[F_START], part[F_END] = window(rule, steady, part[F_OFFSET])
    end
    by_elapsed = by_elapsed or before == BY_ELAPSED
    by_wall = by_wall or before == BY_WALL
    passed = (by_elapsed and BY_ELAPSED or 0) + (by_wall and BY_WALL or 0)
    if passed == BY_BOTH then
      part[F_PASSED] = 0
      local begin, other = window(rule, steady, part[F_OFFSET]), seam - part[F_DRIFTED]
      part[F_START] = begin > other and begin or other
      return turn(part, part[F_LATE])
    end
    part[F_PASSED] = passed
  end

  local function lapse(rule, part, steady, alive, edge)
    while part[F_HOLDS] ~= 0 do
      local instant, cost = holds.next_lapse(rule, part, steady, alive)
      if not instant then
        return
      end
      if instant >= edge - guard(rule, part) and part[F_PASSED] == 0 then
        part[F_LATE] = part[F_LATE] + cost
      end
    end
  end

  local function settle(rule, part, cost, marks, place, outcome, charge, steady, alive)
    local lifted = holds.finish(rule, part, cost, marks[place], outcome, charge, steady, alive)
    if lifted == nil then
      return
    end
    if lifted or marks[place + 2] == part[F_START] or charge > cost then
      part[F_USED] = part[F_USED] + charge - cost
    end
    if part[F_PASSED] ~= 0 then
      if lifted or charge > cost then
        part[F_LATE] = part[F_LATE] + charge - cost
      end
    elseif outcome ~= IS_UNSENT and steady >= first_edge(rule, part) - guard(rule, part) then
      part[F_LATE] = part[F_LATE] + charge
    end
  end

  return {
    --[[ ADVANCE ]] function(rule, part, steady, alive)
      part[F_DRIFTED] = its.wall - steady
      if part[F_PASSED] ~= 0 or drift(part) > rule[C_ERROR] then
        advance_in_doubt(rule, part, steady)
      elseif steady >= part[F_END] then
        local begin, ending = window(rule, steady, part[F_OFFSET])
        local late = begin == part[F_END] and part[F_LATE] or 0
        part[F_LATE] = 0
        lapse(rule, part, begin, alive - (steady - begin), begin)
        part[F_START], part[F_END] = begin, ending
        part[F_SEAM] = begin + part[F_OFFSET]
        turn(part, part[F_HOLDS] + late + part[F_LATE])
      end
      if steady > part[F_AT] then
        if part[F_HOLDS] ~= 0 then
          lapse(rule, part, steady, alive, first_edge(rule, part))
        end
        part[F_AT] = steady
      end
    end,

    --[[ ADMITS ]] function(rule, part, cost)
      local used, late, instant = part[F_USED], part[F_LATE], part[F_AT]
      if instant < part[F_START] + guard(rule, part) then
        return false
      elseif part[F_PROBE] ~= 0 and part[F_HOLDS] == 0 then
        return true
      elseif part[F_PACED_FROM] >= 0
        and (used + cost) * rule[C_UNIT] > (instant - part[F_PACED_FROM]) * rule[C_TICKS] then
        return false
      end
      return (used > late and used or late) + cost <= rule[C_AMOUNT]
    end,

    --[[ OPENS ]] function(rule, part, cost, steady)
      local amount, ending, safe = rule[C_AMOUNT], part[F_END], guard(rule, part)
      local first = part[F_START] + safe
      first = first > steady and first or steady
      if first < ending then
        if part[F_PROBE] ~= 0 and part[F_HOLDS] == 0 then
          return first
        elseif part[F_USED] + cost <= amount then
          local paced_from = part[F_PACED_FROM]
          if paced_from < 0 then
            return first
          end
          local due = paced_from - floor(-(part[F_USED] + cost) * rule[C_UNIT] / rule[C_TICKS])
          if due < ending then
            return due > first and due or first
          end
        end
      end
      local passed = part[F_PASSED]
      if passed ~= 0 or drift(part) > rule[C_ERROR] then
        local _, by_wall = window(rule, part[F_AT], part[F_DRIFTED])
        if passed ~= 0 or by_wall ~= ending then
          local edge = by_wall
          if passed == BY_WALL or (passed == 0 and ending > by_wall) then
            edge = ending
          end
          edge = edge + safe
          return edge > steady and edge or steady
        end
      end
      local lapses, n = holds.lapses_to_come(rule, part)
      local endless = n > 0 and lapses[n - 1] == NEVER  -- the instants are in order
      local edge, late = ending, part[F_LATE]
      if steady >= edge then
        edge = window(rule, steady, part[F_OFFSET])
        late = edge == ending and late or 0
      end
      while true do
        local across = 0
        for index = 1, n, 2 do
          if lapses[index] >= edge - safe then
            across = across + lapses[index + 1]
          end
        end
        if across + late + cost <= amount then
          edge = edge + safe
          return edge > steady and edge or steady
        elseif endless and across + cost > amount then
          return NEVER
        end
        local _
        _, edge = window(rule, edge, part[F_OFFSET])
        late = 0
      end
    end,

    --[[ FIRM ]] function(rule, part, cost, opens)
      return part[F_PASSED] == 0 and drift(part) <= rule[C_ERROR]
        and opens < part[F_END] and part[F_USED] + cost <= rule[C_AMOUNT]
    end,

    --[[ TAKE ]] function(rule, part, cost, steady, alive, out, n)
      part[F_PROBE] = 0
      part[F_GIVEN] = (part[F_GIVEN] + cost) % TURN
      part[F_USED] = part[F_USED] + cost
      if part[F_PASSED] ~= 0 then
        part[F_LATE] = part[F_LATE] + cost
      end
      out[n + 1] = holds.put(rule, part, cost, alive)
      out[n + 2] = part[F_ANSWERED]
      out[n + 3] = part[F_START]
      return n + 3
    end,

    --[[ SETTLE ]] settle,

    --[[ READ ]] function(rule, part, cost, marks, place, limit, remaining, granted_at, steady)
      if limit ~= rule[C_AMOUNT] or marks[place + 2] ~= part[F_START] then
        return
      end
      local stood = limit - remaining
      if steady < part[F_END] - guard(rule, part) then
        if stood > part[F_USED] then
          part[F_USED] = stood
        end
        if granted_at >= part[F_LOST] then
          local most = stood + holds.overlapping(rule, part, cost, marks[place + 1])
          if most < part[F_USED] then
            part[F_USED] = most
          end
          part[F_PACED_FROM] = -1
        end
      end
    end,

    --[[ REFUSES ]] function(rule, part, cost, marks, place, steady, alive)
      settle(rule, part, cost, marks, place, IS_ANSWERED, cost, steady, alive)
      if part[F_USED] < rule[C_AMOUNT] then
        part[F_USED] = rule[C_AMOUNT]
      end
      part[F_PACED_FROM] = -1
    end,

    --[[ ABANDON ]] holds.abandon,

    --[[ ADOPT ]] function(rule, part, units)
      holds.adopt(rule, part, units)
      part[F_USED] = part[F_USED] + units
      if part[F_PASSED] ~= 0 then
        part[F_LATE] = part[F_LATE] + units
      end
    end,

    --[[ OVERDUE ]] function(rule, part, cost, charge)
      if charge > cost then
        part[F_USED] = part[F_USED] + charge - cost
      end
    end,

    --[[ LEAPT ]] function(rule, part, passed)
      part[F_OFFSET] = part[F_OFFSET] + passed
      part[F_START] = part[F_START] - passed
      part[F_END] = part[F_END] - passed
    end,

    --[[ EDGE ]] function(rule, part, steady)
      return part[F_END]
    end,

    --[[ USED ]] function(rule, part)
      return part[F_USED]
    end,

    --[[ MARKS ]] 3,
  }
end


-- Concurrency (core/limits/concurrency.py)

local function slots()
  local function give_back(rule, part, units)
    local left = part[1] - units
    part[1] = left > 0 and left or 0
  end

  local function nothing()
  end

  return {
    --[[ ADVANCE ]] false,

    --[[ ADMITS ]] function(rule, part, cost)
      return part[1] + cost <= rule[LARGEST]
    end,

    --[[ OPENS ]] function(rule, part, cost, steady)
      return part[1] + cost <= rule[LARGEST] and steady or NEVER
    end,

    --[[ FIRM ]] function()
      return false
    end,

    --[[ TAKE ]] function(rule, part, cost, steady, alive, out, n)
      part[1] = part[1] + cost
      return n
    end,

    --[[ SETTLE ]] give_back,
    --[[ READ ]] nothing,
    --[[ REFUSES ]] give_back,
    --[[ ABANDON ]] give_back,

    --[[ ADOPT ]] function(rule, part, units)
      part[1] = part[1] + units
    end,

    --[[ OVERDUE ]] nothing,
    --[[ LEAPT ]] false,
    --[[ EDGE ]] false,

    --[[ USED ]] function(rule, part)
      return part[1]
    end,

    --[[ MARKS ]] 0,
  }
end


-- Clocks (core/clock.py)

local LEAP_US <const> = 1000000
local MANY <const> = 10                      -- CROWD
local LEARNED <const> = 20
local PATIENCE <const> = 10
local LEAST_PATIENCE_US <const> = 4000
local CATCH_UP <const> = 8

clock = {
  -- The instant in steady time; returns how far that was set back, which the rules call a leap.
  read = function()
    local now, wall = its.now, its.wall
    local passed, back = now - state[ELAPSED], 0
    if passed < 0 then
      state[SHIFT] = state[SHIFT] - passed
    elseif passed > LEAP_US then
      local wall_passed = wall - state[WALL]
      if passed > wall_passed + LEAP_US then
        back = passed - (wall_passed > 0 and wall_passed or 0)
        state[SHIFT] = state[SHIFT] - back
      end
    end
    state[ELAPSED], state[WALL] = now, wall
    its.at = now + state[SHIFT]
    return back
  end,

  stood_until = function(instant)
    local stood, cap = instant - state[HELD], state[CAP]
    stood = stood > 0 and stood or 0
    return stood < cap and stood or cap
  end,

  release = function(instant)
    state[FROZEN] = state[FROZEN] + clock.stood_until(instant)
    state[HELD] = -1
    state[SKIP] = 0
  end,

  alive_time = function()
    local alive = its.at - state[FROZEN]
    if state[HELD] >= 0 then
      return alive - clock.stood_until(its.at)
    end
    return alive
  end,

  steady_of_alive = function(instant)
    local held, cap, steady = state[HELD], state[CAP], instant + state[FROZEN]
    if held < 0 or steady <= held then
      return steady
    elseif state[SKIP] ~= 0 then
      return steady + clock.stood_until(state[SKIP_UNTIL])
    end
    return steady + cap
  end,

  touch = function()
    local at = its.at
    if state[HELD] >= 0 then
      if state[SKIP] ~= 0 and at >= state[SKIP_UNTIL] then
        clock.release(state[SKIP_UNTIL])
      end
    elseif state[FLYING] >= MANY and state[SEEN] >= LEARNED then
      local patience = PATIENCE * floor(state[GAP] / 16)
      patience = patience > LEAST_PATIENCE_US and patience or LEAST_PATIENCE_US
      local due, last = state[SINCE] + floor(state[LATENCY] / 16), state[LAST]
      if at > (last > due and last or due) + patience then
        state[HELD] = at
      end
    end
  end,

  -- Returns the alive time.
  record_answer = function(granted_at)
    local at, latency, last = its.at, floor(state[LATENCY] / 16), state[LAST]
    state[LAST] = at
    state[SEEN] = state[SEEN] + 1
    state[LATENCY] = state[LATENCY] + at - granted_at - latency
    local mean = floor(state[GAP] / 16)
    if state[HELD] < 0 then
      if state[FLYING] >= MANY then
        local due = state[SINCE] + latency
        local gap = at - (last > due and last or due)
        if gap >= 0 then
          state[GAP] = state[GAP] + gap - mean
        end
      end
      return at - state[FROZEN]
    end
    if state[SKIP] ~= 0 then
      state[SKIP] = state[SKIP] - 1
    else
      local silence = at - state[HELD]
      local skip, flying = floor(silence / (mean > 1 and mean or 1)), state[FLYING]
      state[SKIP] = skip < flying and skip or flying
      state[SKIP_UNTIL] = at + floor(silence / CATCH_UP)
    end
    if state[SKIP] == 0 then
      clock.release(at)
    end
    return clock.alive_time()
  end,
}


-- One decision for all limits (core/decide.py)

local G_UNTIL <const> = 1                    -- a gate: three numbers, behind 3 × (index of the rule − 1)
local G_PROBED <const> = 2                   -- −2: it is open
local G_STRIKES <const> = 3
local IS_OPEN <const> = -2
local FIRST_PAUSE_US <const> = 250000
local LONGEST_PAUSE_US <const> = 60000000
local PROBE_LEASE_US <const> = 60000000
local LAST_REFUSALS <const> = 24             -- numbers

-- What became of an ask, and how it is written down: GRANTED, whether it probes (1 or 0), its marks; WAITS, until
-- when, for which rule (0: the pause), whether that is firm (1 or 0); TOO_LARGE, for which rule.
local GRANTED <const> = 1
local WAITS <const> = 2
local TOO_LARGE <const> = 3

-- A report is a row of: its form, epoch and steady time of the grant, the costs, the marks of each rule with a cost.
-- In the long form follow: outcome, whether it is a probe, the charges, how many rules a refusal of the server hit,
-- their indexes, and where there are any: whether until an edge, retry-after µs or −1; how many readings, and of
-- each: index of the rule, limit or false, remaining.
local PLAIN <const> = 0                      -- answered, and nothing else is known
local PLAIN_PROBE <const> = 1
local LONG <const> = 2
local FOREIGN <const> = 3                    -- of other limits: outcome, and no more

decide = {
  -- Let time pass for the rules, up to now. What has come that far needs no second time; but it looks at the clock
  -- as often as the core does, since a look may stop it, or let it go on.
  advance = function()
    local alive
    if state[FLYING] < MANY and state[HELD] < 0 then
      alive = its.at - state[FROZEN]
    else
      clock.touch()
      alive = clock.alive_time()
    end
    if alive ~= its.alive_at then
      local at = its.at
      its.alive_at = alive
      for index = 1, #rules do
        local pass = methods[index][ADVANCE]
        if pass then
          pass(rules[index], parts[index], at, alive)
        end
      end
    end
  end,

  -- The costs of a call are as many numbers in a row as there are rules, behind `place`.
  too_large = function(costs, place)
    for index = 1, #rules do
      if costs[place + index] > rules[index][LARGEST] then
        return index
      end
    end
    return nil
  end,

  -- Nothing if it may go now; else the instant (elapsed time), the rule's index (0 for the pause), firm or not.
  wait_for = function(costs, place)
    local at, gates, paused = its.at, its.gates, state[PAUSED]
    if paused > at then
      return paused < NEVER and paused - state[SHIFT] or NEVER, 0, false
    end
    local instant, blocking, moved = at, 0, true
    while moved and instant < NEVER do
      moved = false
      for index = 1, #rules do
        local cost = costs[place + index]
        local base = gates and gates[3 * index - 3 + G_PROBED] ~= IS_OPEN and 3 * index - 3
        if cost ~= 0 and (index ~= blocking or base) then
          local opens = methods[index][OPENS](rules[index], parts[index], cost, instant)
          if base then
            local gate, probed = gates[base + G_UNTIL], gates[base + G_PROBED]
            opens = gate > opens and gate or opens
            if probed >= 0 and at < probed + PROBE_LEASE_US then
              opens = probed + PROBE_LEASE_US > opens and probed + PROBE_LEASE_US or opens
            end
          end
          if opens > instant then
            instant, blocking, moved = opens, index, true
            if instant >= NEVER then
              break
            end
          end
        end
      end
    end
    if blocking == 0 then
      return nil
    elseif instant >= NEVER then
      return NEVER, blocking, false
    end
    local firm = not (gates and gates[3 * blocking - 3 + G_PROBED] ~= IS_OPEN)
      and methods[blocking][FIRM](rules[blocking], parts[blocking], costs[place + blocking], instant)
    return instant - state[SHIFT], blocking, firm
  end,

  -- Returns how many items then stand in `out`, and what became of it.
  decide_one = function(costs, place, out, n)
    local at, blocked, count = its.at, its.shut > 0, #rules
    if blocked and state[PAUSED] > 0 and state[PAUSED] <= at then
      state[PAUSED] = 0
      its.shut = its.shut - 1
    end
    for index = 1, count do
      local cost = costs[place + index]
      if cost ~= 0 and not methods[index][ADMITS](rules[index], parts[index], cost) then
        blocked = true
        break
      end
    end
    if blocked then
      local index = decide.too_large(costs, place)
      if index then
        out[n + 1], out[n + 2] = TOO_LARGE, index
        return n + 2, TOO_LARGE
      end
      local until_us, rule, firm = decide.wait_for(costs, place)
      if until_us then
        out[n + 1], out[n + 2], out[n + 3], out[n + 4] = WAITS, until_us, rule, firm and 1 or 0
        return n + 4, WAITS
      end
    end
    out[n + 1], out[n + 2] = GRANTED, 0
    local gates = its.gates
    if gates then
      for index = 1, count do
        if gates[3 * index - 3 + G_PROBED] ~= IS_OPEN and costs[place + index] ~= 0 then
          gates[3 * index - 3 + G_PROBED] = at
          out[n + 2] = 1
        end
      end
    end
    n = n + 2
    local flying, alive = state[FLYING] + 1, its.alive_at
    state[FLYING] = flying
    if flying == MANY then
      state[SINCE] = at
    end
    state[GRANTS] = state[GRANTS] + 1
    for index = 1, count do
      local cost = costs[place + index]
      if cost ~= 0 then
        n = methods[index][TAKE](rules[index], parts[index], cost, at, alive, out, n)
      end
    end
    return n, GRANTED
  end,

  -- Look at the report behind `place` of the question; returns where it ends.
  read_report = function(place)
    local question, count = its.question, #rules
    local form, costs_at = question[place + 1], place + 3
    its.epoch, its.granted_at = question[place + 2], question[place + 3]
    its.outcome, its.probe, its.hits, its.readings = IS_ANSWERED, form == PLAIN_PROBE, 0, 0
    its.costs_at, its.charges_at = costs_at, costs_at
    if form == FOREIGN then
      its.outcome, its.costs_at = question[place + 4], false
      return place + 4
    end
    place = costs_at + count
    for index = 1, count do
      if question[costs_at + index] ~= 0 then
        place = place + methods[index][MARKS]
      end
    end
    if form ~= LONG then
      return place
    end
    its.outcome, its.probe = question[place + 1], question[place + 2] == 1
    its.charges_at = place + 2
    place = place + 2 + count
    its.hits, its.hits_at = question[place + 1], place + 1
    place = place + 1 + its.hits
    if its.hits > 0 then
      its.edge, its.retry_after = question[place + 1] == 1, question[place + 2]
      place = place + 2
    end
    its.readings, its.readings_at = question[place + 1], place + 1
    return place + 1 + 3 * its.readings
  end,

  is_hit = function(index)
    for place = its.hits_at + 1, its.hits_at + its.hits do
      if its.question[place] == index then
        return true
      end
    end
    return false
  end,

  is_probe = function(base)
    local probed = its.gates[base + G_PROBED]
    return its.probe and its.granted_at >= probed and probed >= 0
  end,

  shut = function(index)
    local base, at, gates = 3 * index - 3, its.at, its.gates
    if not gates then
      gates = {}
      its.gates = gates
      for before = 0, 3 * #rules - 3, 3 do
        gates[before + G_UNTIL], gates[before + G_PROBED], gates[before + G_STRIKES] = 0, IS_OPEN, 0
      end
    end
    if gates[base + G_PROBED] == IS_OPEN then
      gates[base + G_UNTIL], gates[base + G_PROBED], gates[base + G_STRIKES] = at, -1, 0
      its.shut = its.shut + 1
    end
    if decide.is_probe(base) then
      gates[base + G_PROBED] = -1
      gates[base + G_STRIKES] = gates[base + G_STRIKES] + 1
    end
    local opens, strikes = at, gates[base + G_STRIKES]
    if its.edge then
      local edge_after = methods[index][EDGE]
      opens = edge_after and edge_after(rules[index], parts[index], at) or at
    elseif its.retry_after >= 0 then
      opens = at + its.retry_after
    elseif strikes ~= 0 then
      local pause = FIRST_PAUSE_US * 2 ^ (strikes < 21 and strikes - 1 or 20)
      opens = at + (pause < LONGEST_PAUSE_US and pause or LONGEST_PAUSE_US)
    end
    if opens > gates[base + G_UNTIL] then
      gates[base + G_UNTIL] = opens
    end
    state[REFUSED] = state[REFUSED] + 1
    local last, n = {}, 0
    if state[REFUSALS] ~= '' then
      last = { unpack(state[REFUSALS]) }
      n = #last
    end
    last[n + 1], last[n + 2], last[n + 3] = its.wall, index - 1, its.retry_after
    if n + 3 > LAST_REFUSALS then
      for place = 1, LAST_REFUSALS do
        last[place] = last[place + 3]
      end
      last[LAST_REFUSALS + 1], last[LAST_REFUSALS + 2], last[LAST_REFUSALS + 3] = nil, nil, nil
    end
    state[REFUSALS] = cells.text(last)
  end,

  open = function(base)
    if not decide.is_probe(base) then
      return
    elseif its.outcome == IS_ANSWERED and its.gates[base + G_UNTIL] <= its.at then
      its.gates[base + G_PROBED] = IS_OPEN
      its.shut = its.shut - 1
    else
      its.gates[base + G_PROBED] = -1
    end
  end,

  -- The report that was looked at.
  settle_one = function(alive)
    local question, at, outcome, hits, readings = its.question, its.at, its.outcome, its.hits, its.readings
    local costs_at, charges_at = its.costs_at, its.charges_at
    local marks_at = costs_at + #rules + 1
    state[SETTLED] = state[SETTLED] + 1
    for index = 1, #rules do
      local cost = question[costs_at + index]
      if cost ~= 0 then
        local rule, part, method = rules[index], parts[index], methods[index]
        if hits > 0 and decide.is_hit(index) then
          method[REFUSES](rule, part, cost, question, marks_at, at, alive)
          decide.shut(index)
        else
          method[SETTLE](rule, part, cost, question, marks_at, outcome, question[charges_at + index], at, alive)
          local gates = its.gates
          if gates and gates[3 * index - 3 + G_PROBED] ~= IS_OPEN then
            decide.open(3 * index - 3)
          end
        end
        if readings > 0 then
          for place = its.readings_at, its.readings_at + 3 * readings - 3, 3 do
            if question[place + 1] == index then
              local limit, remaining = question[place + 2], question[place + 3]
              method[READ](rule, part, cost, question, marks_at, limit, remaining, its.granted_at, at)
            end
          end
        end
        marks_at = marks_at + method[MARKS]
      end
    end
  end,

  -- Of a call that was granted in an earlier life of its client; `pinned` as in core/decide.py.
  settle_late = function(pinned, alive)
    local question, at, outcome, costs_at = its.question, its.at, its.outcome, its.costs_at
    state[SETTLED] = state[SETTLED] + 1
    for index = 1, costs_at and #rules or 0 do
      local cost = question[costs_at + index]
      if cost ~= 0 then
        local rule, part, method = rules[index], parts[index], methods[index]
        local charge = question[its.charges_at + index]
        local hit = pinned and its.hits > 0 and decide.is_hit(index)
        if pinned and rule[PINS] then
          local adopted = { -1, 0, 0, 0 }
          if hit then
            method[REFUSES](rule, part, cost, adopted, 1, at, alive)
          else
            method[SETTLE](rule, part, cost, adopted, 1, outcome, charge, at, alive)
          end
        elseif outcome == IS_ANSWERED then
          method[OVERDUE](rule, part, cost, charge)
        end
        if hit then
          decide.shut(index)
        end
      end
    end
  end,
}


-- Who draws on a key together (core/crowd.py)

-- The crowd is a row: how many lives there were; of each class its share, what was served and the floor; and then
-- the members, each with cells for its life and for its ticket in each class.
local EPOCHS <const> = 1
local SHARES <const> = 1
local SERVED <const> = 4
local FLOORS <const> = 7
local PEOPLE <const> = 10
local STRIDE <const> = 7
local CLASSES <const> = 3

local M_NAME <const> = 1
local M_UNTIL <const> = 2
local M_WAITS <const> = 3                    -- in which classes: 1, 2 and 4, summed
local M_LIFE <const> = 4
local M_TICKETS <const> = 4

local L_EPOCH <const> = 1
local L_SEQUENCE <const> = 2
local L_FLYING <const> = 3
local L_ADOPTED <const> = 4
local L_PINNED <const> = 4

local T_WAITING <const> = 1
local T_SERVED <const> = 2
local T_DUE <const> = 3
local T_WEIGHT <const> = 4
local T_HEAD <const> = 4

local LATE_US <const> = 20000
local SLACK_US <const> = 2000

-- Of this call: the row (its.crowd), behind which place in it the client stands (its.own), its life (its.life),
-- and of each class: its ticket, if it was looked at; the tickets of all who wait, in member order; whose they
-- are; what the others who wait have been served at least; those of them who are to be waited for likewise.
local tickets, queues, names, least, least_coming = {}, {}, {}, {}, {}
local nobody = {}

crowds = {
  in_class = function(waits, kind)
    if kind == 2 then
      return waits % 4 >= 2
    end
    return kind == 1 and waits % 2 == 1 or kind == 3 and waits >= 4
  end,

  ticket = function(kind)
    local ticket = tickets[kind]
    if not ticket then
      ticket = { unpack(its.crowd[its.own + M_TICKETS + kind]) }
      tickets[kind] = ticket
      queues[kind] = nil
    end
    return ticket
  end,

  -- A client is gone: what only its settlements would have given back.
  release = function(place)
    local gone = { unpack(its.crowd[place + M_LIFE]) }
    local flying = state[FLYING] - gone[L_FLYING]
    state[FLYING] = flying > 0 and flying or 0
    for index = 1, #rules do
      local units = gone[L_PINNED + index]
      if units ~= 0 then
        methods[index][ABANDON](rules[index], parts[index], units, its.alive_at)
      end
    end
  end,

  take_out = function(place)
    local crowd = its.crowd
    local size = #crowd
    for behind = place + 1, size - STRIDE do
      crowd[behind] = crowd[behind + STRIDE]
    end
    for behind = size, size - STRIDE + 1, -1 do
      crowd[behind] = nil
    end
    if its.own and its.own > place then
      its.own = its.own - STRIDE
    end
  end,

  enter = function(client)
    local at, crowd = its.at, nil
    if state[CROWD] == '' then
      crowd = { at > 0 and at or 0, 50, 35, 15, 0, 0, 0, 0, 0, 0 }
    else
      crowd = cells.read(state[CROWD])
    end
    its.crowd = crowd
    local own, gone, waits = false, nil, 0
    for place = PEOPLE, #crowd - STRIDE, STRIDE do
      waits = waits + crowd[place + M_WAITS]
      if crowd[place + M_NAME] == client then
        own = place
      elseif crowd[place + M_UNTIL] <= at then
        gone = gone or {}
        gone[#gone + 1] = place
      end
    end
    if own then
      its.life = { unpack(crowd[own + M_LIFE]) }
    else
      own = #crowd
      crowd[EPOCHS] = crowd[EPOCHS] + 1
      local life, blank = { crowd[EPOCHS], 0, 0, 0 }, { 0, 0, 0, 1 }
      for index = 1, #rules do
        life[L_PINNED + index] = 0
        blank[T_HEAD + index] = 0
      end
      its.life, blank = life, cells.text(blank)
      crowd[own + M_NAME], crowd[own + M_UNTIL], crowd[own + M_WAITS], crowd[own + M_LIFE] = client, 0, 0, ''
      for kind = 1, CLASSES do
        crowd[own + M_TICKETS + kind] = blank
      end
    end
    crowd[own + M_UNTIL] = at + its.question[LEASE]
    its.own, its.nobody_waits = own, waits == 0
    if gone then
      for index = 1, #gone do
        crowds.release(gone[index])
      end
      for index = #gone, 1, -1 do
        crowds.take_out(gone[index])
      end
    end
  end,

  queue = function(kind)
    local found = queues[kind]
    if not found then
      if its.nobody_waits and not tickets[kind] then
        return nobody
      end
      found = {}
      local crowd, own, whose, n = its.crowd, its.own, {}, 0
      for place = PEOPLE, #crowd - STRIDE, STRIDE do
        local waits, ticket = crowd[place + M_WAITS], nil
        if place == own and tickets[kind] then
          ticket = tickets[kind]
        elseif waits ~= 0 and crowds.in_class(waits, kind) then
          ticket = place == own and crowds.ticket(kind) or { unpack(crowd[place + M_TICKETS + kind]) }
        end
        if ticket then
          n = n + 1
          found[n], whose[n] = ticket, crowd[place + M_NAME]
        end
      end
      queues[kind], names[kind] = found, whose
    end
    return found
  end,

  anybody_waits = function(kind)
    local found = crowds.queue(kind)
    for index = 1, #found do
      if found[index][T_WAITING] ~= 0 then
        return true
      end
    end
    return false
  end,

  comes = function(ticket)
    return ticket[T_DUE] >= NEVER or its.at <= ticket[T_DUE] + LATE_US
  end,

  -- Of all who wait in a class only our own ticket changes in this call.
  look_at_others = function(kind)
    local found, mine = crowds.queue(kind), tickets[kind]
    local low, low_coming = NEVER, NEVER
    for index = 1, #found do
      local ticket = found[index]
      if ticket ~= mine and ticket[T_WAITING] ~= 0 then
        local served = ticket[T_SERVED]
        low = served < low and served or low
        if served < low_coming and crowds.comes(ticket) then
          low_coming = served
        end
      end
    end
    least[kind], least_coming[kind] = low, low_coming
  end,

  -- `head`: behind which place of the question its costs are; nil if nobody waits.
  stand = function(kind, waiting, head)
    local crowd, ticket = its.crowd, crowds.ticket(kind)
    if not head then
      ticket[T_WAITING] = 0
      return
    end
    if ticket[T_WAITING] == 0 then
      if not crowds.anybody_waits(kind) then
        local low
        for other = 1, CLASSES do
          local served = crowd[SERVED + other]
          if other ~= kind and not (low and low <= served) and crowds.anybody_waits(other) then
            low = served
          end
        end
        if low and low > crowd[SERVED + kind] then
          crowd[SERVED + kind] = low
        end
      end
      if crowd[FLOORS + kind] > ticket[T_SERVED] then
        ticket[T_SERVED] = crowd[FLOORS + kind]
      end
      ticket[T_DUE] = its.at
    end
    ticket[T_WAITING] = waiting
    for index = 1, #rules do
      ticket[T_HEAD + index] = its.question[head + index]
    end
  end,

  -- Whose turn comes before ours, as ticket, lag, ticket, lag, …; nil if nobody's does.
  ahead = function(kind)
    local crowd, mine = its.crowd, tickets[kind]
    local found, n, served = nil, 0, crowd[SERVED + kind]
    for other = 1, CLASSES do
      if other == kind then
        local limit = mine[T_SERVED] - SLACK_US
        if least_coming[kind] < limit then
          local line = crowds.queue(kind)
          found = found or {}
          for index = 1, #line do
            local ticket = line[index]
            if ticket ~= mine and ticket[T_WAITING] ~= 0 and ticket[T_SERVED] < limit and crowds.comes(ticket) then
              found[n + 1], found[n + 2] = ticket, mine[T_SERVED] - ticket[T_SERVED]
              n = n + 2
            end
          end
        end
      elseif crowd[SERVED + other] + SLACK_US < served then
        local line, first = crowds.queue(other), nil
        for index = 1, #line do
          local ticket = line[index]
          if ticket[T_WAITING] ~= 0 and crowds.comes(ticket)
            and not (first and first[T_SERVED] <= ticket[T_SERVED]) then
            first = ticket
          end
        end
        if first then
          local share = crowd[SHARES + other]
          found = found or {}
          found[n + 1] = first
          found[n + 2] = floor((served - crowd[SERVED + other]) * (share > 1 and share or 1) / 100)
          n = n + 2
        end
      end
    end
    return found, n
  end,

  serve = function(kind, weight_us)
    local crowd, mine, low = its.crowd, tickets[kind], least[kind]
    if mine[T_WAITING] ~= 0 and mine[T_SERVED] < low then
      low = mine[T_SERVED]
    end
    if low < NEVER and low > crowd[FLOORS + kind] then
      crowd[FLOORS + kind] = low
    end
    mine[T_SERVED] = mine[T_SERVED] + weight_us
    local share = crowd[SHARES + kind]
    crowd[SERVED + kind] = crowd[SERVED + kind] + floor(weight_us * 100 / (share > 1 and share or 1))
  end,

  -- Whether one name comes before another; `<` would go by the server's language.
  before = function(one, other)
    for index = 1, #one do
      local left, right = one:byte(index), other:byte(index)
      if left ~= right then
        return right and left < right
      end
    end
    return #one < #other
  end,
}


-- The same decisions in turn (core/together.py)

local LOOK_US <const> = 1000000
local AT_LEAST_US <const> = 1000

turns = {
  -- The client that may go now and waits, or false.
  who_may_go = function()
    local crowd = its.crowd
    if not crowd then
      return false
    end
    local first, first_served, name
    for kind = 1, CLASSES do
      local line, served = crowds.queue(kind), crowd[SERVED + kind]
      for index = 1, #line do
        local ticket = line[index]
        if ticket[T_WAITING] ~= 0 and crowds.comes(ticket) then
          local sooner = not first or served < first_served
          if not sooner and served == first_served then
            sooner = ticket[T_SERVED] < first[T_SERVED]
              or ticket[T_SERVED] == first[T_SERVED] and crowds.before(names[kind][index], name)
          end
          if sooner then
            first, first_served, name = ticket, served, names[kind][index]
          end
        end
      end
    end
    if first and first[T_DUE] > its.at
      and (decide.too_large(first, T_HEAD) or not decide.wait_for(first, T_HEAD)) then
      return name
    end
    return false
  end,

  -- Others go first, unless there is enough for them to catch up and then for this one: then it returns nothing.
  let_pass = function(ticket, place, others, n, out, written)
    local needed, question = {}, its.question
    for index = 1, #rules do
      needed[index] = question[place + index]
    end
    for pair = 1, n, 2 do
      local other = others[pair]
      local calls = floor(others[pair + 1] / other[T_WEIGHT])
      calls = calls > 1 and calls or 1
      calls = other[T_WAITING] < calls and other[T_WAITING] or calls
      for index = 1, #rules do
        needed[index] = needed[index] + calls * other[T_HEAD + index]
      end
    end
    for index = 1, #rules do
      local largest = rules[index][LARGEST]
      needed[index] = needed[index] < largest and needed[index] or largest
    end
    local until_us, rule = decide.wait_for(needed, 0)
    if not until_us then
      return nil
    end
    local due, at = until_us + state[SHIFT], its.at
    due = due > at + AT_LEAST_US and due or at + AT_LEAST_US
    due = due < at + LOOK_US and due or at + LOOK_US
    ticket[T_DUE] = due
    out[written + 1], out[written + 2], out[written + 3], out[written + 4] = WAITS, due - state[SHIFT], rule, 0
    return written + 4
  end,

  -- One ask of a line: its weight is in the question at `place`, and behind that are its costs.
  in_turn = function(kind, place, out, n)
    local question, ticket, count = its.question, tickets[kind], #rules
    local weight_us = question[place]
    ticket[T_WEIGHT] = weight_us
    for index = 1, count do
      ticket[T_HEAD + index] = question[place + index]
    end
    local others, size = crowds.ahead(kind)
    if others and not decide.too_large(question, place) then
      local written = turns.let_pass(ticket, place, others, size, out, n)
      if written then
        return written, WAITS
      end
    end
    local written, answer = decide.decide_one(question, place, out, n)
    if answer == WAITS then
      local until_us, soon = out[n + 2], its.now + LOOK_US
      ticket[T_DUE] = (until_us < soon and until_us or soon) + state[SHIFT]
      return written, answer
    end
    ticket[T_WAITING] = ticket[T_WAITING] > 1 and ticket[T_WAITING] - 1 or 0
    if answer == GRANTED then
      local life = its.life
      crowds.serve(kind, weight_us)
      life[L_FLYING] = life[L_FLYING] + 1
      for index = 1, count do
        if rules[index][PINS] then
          life[L_PINNED + index] = life[L_PINNED + index] + question[place + index]
        end
      end
    end
    return written, answer
  end,

  -- A line is a row of: class, how many wait, how many runs of equal asks follow, and of each: how many asks, the
  -- weight of one, its costs. The answers to each line behind `place` go into a table of their own; they end with
  -- the first that waits, and whoever asked knows what that means for the rest.
  acquire = function(place, replies, n)
    local question, lines, count = its.question, {}, #rules
    decide.advance()
    for index = 1, question[LINES] do
      local kind, runs = question[place + 1] + 1, question[place + 3]
      local answers = {}
      replies[n + index] = answers
      crowds.stand(kind, question[place + 2], runs > 0 and place + 5 or nil)
      if runs > 0 then  -- class, runs left, where the run is, asks left in it, answers, how many items they are
        lines[#lines + 1] = { kind, runs, place + 3, question[place + 4], answers, 0 }
      end
      place = place + 3 + runs * (2 + count)
    end
    for index = 1, #lines do
      crowds.look_at_others(lines[index][1])
    end
    while lines[1] do
      local chosen, served = 1, its.crowd
      for index = 2, #lines do
        if served[SERVED + lines[index][1]] < served[SERVED + lines[chosen][1]] then
          chosen = index
        end
      end
      local line, answer = lines[chosen], nil
      line[6], answer = turns.in_turn(line[1], line[3] + 2, line[5], line[6])
      line[4] = line[4] - 1
      if answer == WAITS then
        table.remove(lines, chosen)
      elseif line[4] == 0 then
        line[2] = line[2] - 1
        line[3] = line[3] + 2 + count
        line[4] = question[line[3] + 1]
        if line[2] == 0 then
          table.remove(lines, chosen)
        end
      end
    end
  end,

  -- Returns where the reports behind `place` end.
  settle = function(place)
    local question, life, count = its.question, its.life, #rules
    local sequence = question[SEQUENCE]
    local anew = sequence == 0 or sequence > life[L_SEQUENCE]
    if sequence > life[L_SEQUENCE] then
      life[L_SEQUENCE] = sequence
    end
    for _ = 1, question[REPORTS] do
      place = decide.read_report(place)
      if anew then
        if its.epoch ~= life[L_EPOCH] and life[L_ADOPTED] == 0 then
          decide.settle_late(false, its.alive_at)
        else
          decide.advance()
          local alive = its.alive_at
          if its.outcome == IS_ANSWERED then
            alive = clock.record_answer(its.granted_at)
          end
          if state[FLYING] ~= 0 then
            state[FLYING] = state[FLYING] - 1
          end
          life[L_FLYING] = life[L_FLYING] > 1 and life[L_FLYING] - 1 or 0
          local costs_at = its.costs_at
          for index = 1, costs_at and count or 0 do
            if rules[index][PINS] then
              local pinned = life[L_PINNED + index] - question[costs_at + index]
              life[L_PINNED + index] = pinned > 0 and pinned or 0
            end
          end
          if its.epoch == life[L_EPOCH] and costs_at then
            decide.settle_one(alive)
          else
            decide.settle_late(true, alive)
          end
        end
      end
    end
    return place
  end,

  -- Set right what is held against this client.
  count = function(place)
    local question, life = its.question, its.life
    local flying = question[place + 1]
    local all = state[FLYING] + flying - life[L_FLYING]
    state[FLYING] = all > 0 and all or 0
    life[L_FLYING] = flying
    for index = 1, #rules do
      if rules[index][PINS] then
        local held = question[place + 1 + index]
        local more = held - life[L_PINNED + index]
        if more > 0 then
          methods[index][ADOPT](rules[index], parts[index], more)
        elseif more < 0 then
          methods[index][ABANDON](rules[index], parts[index], -more, its.alive_at)
        end
        life[L_PINNED + index] = held
      end
    end
    life[L_ADOPTED] = 1
  end,

  -- Puts into the reply, behind `n`: epoch, who may go, space for what is used, and the answers to each line.
  trade = function(reply, n)
    local question, place = its.question, QUESTION
    decide.advance()
    crowds.enter(question[CLIENT])
    if question[REPORTS] > 0 then
      place = turns.settle(place)
      decide.advance()
    end
    if question[HOLDING] >= 0 then
      turns.count(place)
      place = place + question[HOLDING]
    end
    if question[LINES] > 0 then
      turns.acquire(place, reply, n + 2 + #rules)
    end
    reply[n + 1], reply[n + 2] = its.life[L_EPOCH], turns.who_may_go()
  end,

  leave = function(reply, n)
    local client, crowd = its.question[CLIENT], cells.read(state[CROWD])
    its.crowd = crowd
    decide.advance()
    for place = PEOPLE, #crowd - STRIDE, STRIDE do
      if crowd[place + M_NAME] == client then
        crowds.release(place)
        crowds.take_out(place)
        break
      end
    end
    reply[n + 1], reply[n + 2] = 0, turns.who_may_go()
  end,
}


-- One client, as if there were no other: decide.settle, then decide.acquire of one line

local function act_alone(reply, n)
  local question, place = its.question, QUESTION
  for _ = 1, question[REPORTS] do
    place = decide.read_report(place)
    decide.advance()
    local alive = its.alive_at
    if its.outcome == IS_ANSWERED then
      alive = clock.record_answer(its.granted_at)
    end
    if state[FLYING] ~= 0 then
      state[FLYING] = state[FLYING] - 1
    end
    decide.settle_one(alive)
  end
  reply[n + 1], reply[n + 2] = 0, false
  if question[LINES] > 0 or question[REPORTS] == 0 then
    decide.advance()
  end
  if question[LINES] > 0 then
    local out, written, answer = {}, 0, GRANTED
    reply[n + 3 + #rules] = out
    local runs = question[place + 3]
    place = place + 3
    for _ = 1, runs do
      for _ = 1, question[place + 1] do
        written, answer = decide.decide_one(question, place + 2, out, written)
        if answer == WAITS then
          return
        end
      end
      place = place + 2 + #rules
    end
  end
end


-- In and out

local DAY_US <const> = 86400000000
local MARK_MS <const> = 3024000000           -- 35 days

-- Returns for how many ms the value is to be kept.
local function load_rules()
  local told, kinds, made = { unpack(ARGV[2]) }, { bucket, sliding, fixed, slots }, {}
  for index = 1, #told - 1 do
    local rule = { unpack(told[index + 1]) }
    local kind = rule[KIND]
    if not made[kind] then
      made[kind] = kinds[kind]()
    end
    rules[index], methods[index] = rule, made[kind]
  end
  return told[1]
end

local function save(ttl_ms)
  for index = 1, openings, 2 do
    local part, place = opened[index], opened[index + 1]
    part[place] = cells.text(part[place])
  end
  local longest = 0  -- how much longer than usual it takes until nothing of it counts, in µs
  for index = 1, #rules do
    local part = parts[index]
    if rules[index][KIND] == BUCKET and part[B_LEVEL] < 0 then
      local debt = -part[B_LEVEL] / rules[index][R_TICKS]
      longest = debt > longest and debt or longest
    end
    state[PARTS + index] = cells.text(part)
  end
  local gates, crowd, own = its.gates, its.crowd, its.own
  if gates then
    local all_open = true
    for base = 0, 3 * #rules - 3, 3 do
      if gates[base + G_PROBED] ~= IS_OPEN then
        local shut_for = gates[base + G_UNTIL] - its.at
        longest = shut_for > longest and shut_for or longest
        all_open = false
      end
    end
    state[GATES] = all_open and '' or cells.text(gates)
  end
  if crowd then
    if own then
      local waits = crowd[own + M_WAITS]
      crowd[own + M_LIFE] = cells.text(its.life)
      for kind = 1, CLASSES do
        local ticket = tickets[kind]
        if ticket then
          crowd[own + M_TICKETS + kind] = cells.text(ticket)
          if crowds.in_class(waits, kind) then
            waits = waits - 2 ^ (kind - 1)
          end
          if ticket[T_WAITING] ~= 0 then
            waits = waits + 2 ^ (kind - 1)
          end
        end
      end
      crowd[own + M_WAITS] = waits
    end
    state[CROWD] = cells.text(crowd)
  end
  state[VERSION] = state[VERSION] + 1
  local since = its.wall - state[MARKED]
  if since >= DAY_US or since < 0 then
    state[MARKED] = its.wall
    redis.call('SET', KEYS[2], state[GENERATION], 'PX', MARK_MS)
  end
  if state[PAUSED] > 0 then
    redis.call('SET', KEYS[1], cells.text(state))
    return -1
  end
  ttl_ms = ttl_ms + floor(longest / 1000) + 1
  redis.call('SET', KEYS[1], cells.text(state), 'PX', ttl_ms)
  return ttl_ms
end

-- A hint for a client: to look again at this key.
local function hint(client)
  redis.pcall('PUBLISH', 'headgate:to:' .. client, KEYS[1])  -- whoever may not goes without
end

-- State.dump of a value, whatever its limits are.
local function dump()
  local function slice(source, first, last)
    local found = {}
    for index = first, last do
      found[#found + 1] = source[index]
    end
    return found
  end

  local function triples(cell)
    local flat, found = cell == '' and {} or { unpack(cell) }, {}
    for index = 1, #flat, 3 do
      found[#found + 1] = slice(flat, index, index + 2)
    end
    return found
  end

  local size, flat_parts, gates = #state - PARTS, {}, triples(state[GATES])
  for index = 1, size do
    local flat, part = {}, cells.read(state[PARTS + index])
    for place = 1, #part do
      local item = part[place]
      if type(item) == 'string' then
        local cell = { unpack(item) }
        for inner = 1, #cell do
          flat[#flat + 1] = cell[inner]
        end
      else
        flat[#flat + 1] = item
      end
    end
    flat_parts[index] = flat
    local gate = gates[index]
    if not gate or gate[G_PROBED] == IS_OPEN then
      gates[index] = {}
    end
  end
  local found = {
    slice(state, SHIFT, WALL), slice(state, FROZEN, CAP), flat_parts, gates, state[PAUSED],
    slice(state, GRANTS, REFUSED), triples(state[REFUSALS]),
  }
  if state[CROWD] ~= '' then
    local people, all = {}, cells.read(state[CROWD])
    for place = PEOPLE, #all - STRIDE, STRIDE do
      local life, three = cells.read(all[place + M_LIFE]), {}
      for kind = 1, CLASSES do
        three[kind] = cells.read(all[place + M_TICKETS + kind])
      end
      people[#people + 1] = {
        all[place + M_NAME], all[place + M_UNTIL], life[L_EPOCH], life[L_SEQUENCE], life[L_FLYING],
        slice(life, L_PINNED + 1, L_PINNED + size), three, life[L_ADOPTED],
      }
    end
    found[8] = {
      people, all[EPOCHS], slice(all, SHARES + 1, SHARES + 3), slice(all, SERVED + 1, SERVED + 3),
      slice(all, FLOORS + 1, FLOORS + 3),
    }
  end
  return found
end

-- The value of what State.dump gave. A part's shape says how many of its numbers stand in the row (above 0) or in a
-- cell of their own (below 0), one after another.
local function undump(found, shapes)
  local function append(list, items)
    local size = #list
    for index = 1, #items do
      list[size + index] = items[index]
    end
  end

  local people, refusals, gates = found[8], {}, {}
  state = { FORMAT_NOW, false, false, false, false, its.wall - DAY_US }
  append(state, found[1])
  append(state, found[2])
  append(state, { found[5] })
  append(state, found[6])
  for index = 1, #found[7] do
    append(refusals, found[7][index])
  end
  append(state, { refusals[1] and cells.text(refusals) or '', '', '' })
  its.at = state[ELAPSED] + state[SHIFT]
  for index = 1, #rules do
    local flat, part, place = found[3][index], {}, 0
    for step = 1, #shapes[index] do
      local size, numbers = shapes[index][step], {}
      for item = 1, size < 0 and -size or size do
        numbers[item] = flat[place + item]
      end
      place = place + #numbers
      append(part, size < 0 and { cells.text(numbers) } or numbers)
    end
    parts[index] = part
    local gate = found[4][index]
    append(gates, gate[1] and gate or { 0, IS_OPEN, 0 })
  end
  its.gates = gates
  if people then
    local crowd = { people[2] }
    for list = 3, 5 do
      append(crowd, people[list])
    end
    for index = 1, #people[1] do
      local name, ending, born, sequence, flying, pinned, three, adopted = spread(people[1][index])
      local life, waits, lines = { born, sequence, flying, adopted }, 0, {}
      append(life, pinned)
      for kind = 1, CLASSES do
        waits = waits + (three[kind][T_WAITING] ~= 0 and 2 ^ (kind - 1) or 0)
        lines[kind] = cells.text(three[kind])
      end
      append(crowd, { name, ending, waits, cells.text(life) })
      append(crowd, lines)
    end
    its.crowd = crowd
  end
end

-- Put a value in place, or take it away, if nobody has written since.
local function replace(value, verb)
  local question = its.question
  local known = question[KNOWN_GENERATION]
  if value then
    if state[GENERATION] ~= known or state[VERSION] ~= question[KNOWN_VERSION] then
      return { CHANGED, its.now, its.wall }
    elseif state[CROWD] ~= '' then
      local crowd = cells.read(state[CROWD])
      for place = PEOPLE, #crowd - STRIDE, STRIDE do
        hint(crowd[place + M_NAME])
      end
    end
  elseif known then
    return { CHANGED, its.now, its.wall }
  end
  local kept_ms = 0
  if verb == FORGET then
    redis.call('DEL', KEYS[1])
    redis.call('SET', KEYS[2], '', 'PX', MARK_MS)
  else
    local ttl_ms, told = load_rules(), cells.read(ARGV[3])
    undump(told[5], told[6])
    state[GENERATION], state[VERSION], state[FINGERPRINT], state[ABOUT] = told[1], told[2] - 1, told[3], told[4]
    kept_ms = save(ttl_ms)
  end
  return { DONE, its.now, its.wall, kept_ms }
end

local function answer()
  local question = cells.read(ARGV[1])
  local now, wall, verb, known = question[NOW], question[NOW + 1], question[VERB], question[KNOWN_GENERATION]
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
    wall = now
  end
  its.question, its.now, its.wall = question, now, wall
  local value = redis.call('GET', KEYS[1])
  if value then
    state = cells.read(value)
    if state[FORMAT] ~= FORMAT_NOW then
      return { FOREIGN_FORMAT, now, wall, state[FORMAT] }
    end
  end
  if verb == PUT or verb == FORGET then
    return replace(value, verb)
  elseif not value then
    return { ABSENT, now, wall, redis.call('GET', KEYS[2]) }
  elseif verb == GET then
    return { DONE, now, wall, state[GENERATION], state[VERSION], state[FINGERPRINT], state[ABOUT], dump() }
  elseif known and (state[GENERATION] == known and state[VERSION] < question[KNOWN_VERSION]
    or state[GENERATION] ~= known and state[GENERATION]:byte() == UNKNOWING) then
    return { BEHIND, now, wall, state[VERSION], state[GENERATION] }
  elseif state[FINGERPRINT] ~= question[EXPECTED] then
    return { OTHER, now, wall, state[GENERATION], state[VERSION], state[FINGERPRINT], state[ABOUT], dump() }
  end

  local ttl_ms = load_rules()
  local count = #rules
  for index = 1, count do
    parts[index] = { unpack(state[PARTS + index]) }
  end
  if state[GATES] ~= '' then
    local gates, shut = { unpack(state[GATES]) }, 0
    for place = G_PROBED, 3 * count, 3 do
      if gates[place] ~= IS_OPEN then
        shut = shut + 1
      end
    end
    its.gates, its.shut = gates, shut
  end
  if state[PAUSED] > 0 then
    its.shut = its.shut + 1
  end
  local back = clock.read()
  if back > 0 then
    for index = 1, count do
      local leapt = methods[index][LEAPT]
      if leapt then
        leapt(rules[index], parts[index], back)
      end
    end
  end

  -- What every reply has; then the epoch, who may go, what each limit has used, and the answers to each line.
  local reply, n = { DONE, now, wall, its.at, state[GENERATION], state[VERSION] + 1, 0 }, 7
  if verb == TRADE then
    turns.trade(reply, n)
  elseif verb == LEAVE and state[CROWD] ~= '' then
    turns.leave(reply, n)
  else
    act_alone(reply, n)
  end
  for index = 1, count do
    reply[n + 2 + index] = methods[index][USED](rules[index], parts[index])
  end
  reply[n] = save(ttl_ms)
  local next_client = reply[n + 2]
  if next_client and next_client ~= question[CLIENT] then
    hint(next_client)
  end
  return reply
end

local done, reply = pcall(answer)
if done then
  return pack(reply)
elseif type(reply) == 'table' and reply[1] then  -- thrown by a calendar, before anything was written
  return pack({ EDGES, its.now, its.wall, reply[1] })
end
return error(reply, 0)

end

return run()
