"""What Redis itself does to an entity's value: fold a row in, or take a view out. Each is atomic.

Redis' Lua has numbers of 53 bits: each time is compared as two integers of 32 bits, the upper one
signed, so that the order is exact. Its strings compare by locale: tags are compared as numbers.
"""

from __future__ import annotations

from typing import Final

from tallystick.online_store.row_layout import (
    CREATED,
    FAR_CREATED,
    HEAD,
    LATER_WRITE,
    LONG,
    NEAR_CREATED,
    NEAR_WRITE,
    TAG,
    VERSION,
    WRITE,
)

_SECTIONS: Final = f"""
-- Flags, start of the body and start of the next section; nothing where the value is cut.
local function section(value, at)
  local flags = string.byte(value, at + {TAG})
  local length, body
  if flags == nil then return nil end
  if bit.band(flags, {LONG}) == 0 then
    length, body = string.byte(value, at + {HEAD}), at + {HEAD + 1}
  elseif #value >= at + {HEAD + 3} then
    length, body = struct.unpack('<I4', value, at + {HEAD}), at + {HEAD + 4}
  end
  if length == nil or body + length > #value + 1 then return nil end
  local created, write = bit.band(flags, {CREATED}), bit.band(flags, {WRITE})
  local times = 8 + (created == {NEAR_CREATED} and 4 or created == {FAR_CREATED} and 8 or 0)
  times = times + (write == {NEAR_WRITE} and 4 or write == {LATER_WRITE} and 6 or 8)
  if length < times then return nil end
  return flags, body, body + length
end
-- What lies under a key; nothing where that is of another kind than ours.
local function value_of(key)
  local value = redis.pcall('GET', key)
  if type(value) == 'string' then return value end
  return nil
end
local function view_of(value, at)
  return (struct.unpack('>I3', value, at))
end
"""

FOLD: Final = (
    _SECTIONS
    + f"""
local won, lost, repeated = 0, 0, 0
local expiring, now, ttls = ARGV[2] == '1', 0, {{}}
local longest = tonumber(ARGV[3])
if expiring then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
  for at = 1, #ARGV[1], {TAG + 8} do
    ttls[string.sub(ARGV[1], at, at + {TAG - 1})] = struct.unpack('<d', ARGV[1], at + {TAG})
  end
end
local function created_of(value, body, flags)
  local kind = bit.band(flags, {CREATED})
  local low, high = struct.unpack('<I4i4', value, body)
  if kind == {FAR_CREATED} then
    low, high = struct.unpack('<I4i4', value, body + 8)
  elseif kind == {NEAR_CREATED} then
    low = low + struct.unpack('<I4', value, body + 8)
    if low >= 4294967296 then low, high = low - 4294967296, high + 1 end
  end
  return low, high
end
-- Positive if the first row is the newer one.
local function order_of(one, body, flags, other, other_body, other_flags)
  local low, high = struct.unpack('<I4i4', one, body)
  local other_low, other_high = struct.unpack('<I4i4', other, other_body)
  if high ~= other_high then return high - other_high end
  if low ~= other_low then return low - other_low end
  low, high = created_of(one, body, flags)
  other_low, other_high = created_of(other, other_body, other_flags)
  if high ~= other_high then return high - other_high end
  return low - other_low
end
-- When a row is forgotten: one ttl after it was written or ran out, whichever is later.
local function deadline_of(value, at, body, flags, written)
  local ttl = ttls[string.sub(value, at, at + {TAG - 1})]
  if ttl == nil then return math.huge end
  local low, high = struct.unpack('<I4i4', value, body)
  local event, write = high * 4294967296 + low, 0
  local kind = bit.band(flags, {CREATED})
  local place = body + 8 + (kind == {NEAR_CREATED} and 4 or kind == {FAR_CREATED} and 8 or 0)
  local write_kind = bit.band(flags, {WRITE})
  if write_kind == {NEAR_WRITE} then
    write = event + struct.unpack('<I4', value, place)
  elseif write_kind == {LATER_WRITE} then
    low, high = struct.unpack('<I4I2', value, place)
    write = event + high * 4294967296 + low
  else
    low, high = struct.unpack('<I4i4', value, place)
    write = high * 4294967296 + low
  end
  return math.max(event + ttl, write, written) + ttl
end
-- The other sections of a value with the new one among them, and when all may be forgotten; nothing
-- if the row that is there stays, and then how the new one stands to it.
local function merged(old, new)
  local flags, body = section(new, 1)
  local deadline = expiring and deadline_of(new, 1, body, flags, now) or math.huge
  if not old or string.byte(old) ~= {VERSION} then return {{new}}, deadline end
  local view, pieces, placed, at = view_of(new, 1), {{}}, false, 2
  while at <= #old do
    local old_flags, old_body, after = section(old, at)
    if old_flags == nil then return {{new}}, deadline end
    local old_view = view_of(old, at)
    if old_view == view then
      local order = order_of(new, body, flags, old, old_body, old_flags)
      if order < 0 then return nil, -1 end
      if order == 0 and string.sub(old, at, at + {TAG - 1}) == string.sub(new, 1, {TAG}) then
        return nil, 0
      end
    else
      if old_view > view and not placed then
        pieces[#pieces + 1] = new
        placed = true
      end
      local other = expiring and deadline_of(old, at, old_body, old_flags, 0) or math.huge
      if other > now then
        pieces[#pieces + 1] = string.sub(old, at, after - 1)
        deadline = math.max(deadline, other)
      end
    end
    at = after
  end
  if not placed then pieces[#pieces + 1] = new end
  return pieces, deadline
end
for i, key in ipairs(KEYS) do
  local pieces, deadline = merged(value_of(key), ARGV[i + 3])
  if pieces then
    local value = '\\{VERSION}' .. table.concat(pieces)
    local rest = expiring and math.max(1, math.ceil((deadline - now) / 1000)) or math.huge
    if longest > 0 then rest = math.min(rest, longest) end
    if rest < 4503599627370496 then
      redis.call('SET', key, value, 'PX', string.format('%.0f', rest))
    else
      redis.call('SET', key, value)
    end
    won = won + 1
  elseif deadline < 0 then
    lost = lost + 1
  else
    repeated = repeated + 1
  end
end
return {{won, lost, repeated}}
"""
)
"""Folds one row into the value of each key.

KEYS: entities. ARGV: what :class:`tallystick.online_store.definition_tags.Registered` holds; ``1``
if rows are forgotten by their ttl; milliseconds after which a value goes in any case, or 0; then
one packed row for each key, all of one view. Answers how many rows won, lost and were repeated.

A row with the same times stays (the first written wins), unless it was written under another
definition of the view: otherwise a new column could never be filled for times that are already
there. A value that is damaged is replaced. Rows of other views that are past their time go.
"""

REMOVE: Final = (
    _SECTIONS
    + f"""
local removed, view = 0, view_of(ARGV[1], 1)
for _, key in ipairs(KEYS) do
  local old = value_of(key)
  local pieces, found, at = {{}}, false, 2
  while old and string.byte(old) == {VERSION} and at <= #old do
    local flags, _, after = section(old, at)
    if flags == nil then break end
    if view_of(old, at) == view then
      found = true
    else
      pieces[#pieces + 1] = string.sub(old, at, after - 1)
    end
    at = after
  end
  if found then
    removed = removed + 1
    if #pieces == 0 then
      redis.call('UNLINK', key)
    else
      redis.call('SET', key, '\\{VERSION}' .. table.concat(pieces), 'KEEPTTL')
    end
  end
end
return removed
"""
)
"""Takes the row of a view out of the value of each key.

KEYS: entities. ARGV: the view's tag. Answers how many rows there were.
"""
