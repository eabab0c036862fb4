"""Scripts that Redis runs on an entity's value: write a row, or remove a view. Each is atomic.

They are generated from :mod:`tallystick.online_store.row_layout`. Redis' Lua has numbers of 53
bits, so a time is compared as two integers of 32 bits, the upper one signed. Its strings compare by
locale, so tags are compared as numbers.
"""

from __future__ import annotations

from typing import Final

from tallystick.online_store.row_layout import (
    CREATED,
    HEAD,
    LONG,
    OFFSET_BYTES,
    TAG,
    VERSION,
    VIEW_TAG,
    WRITE,
    WRITE_SHIFT,
)

_WIDTHS: Final = ", ".join(f"[{code}] = {width}" for code, width in enumerate(OFFSET_BYTES))

_SECTIONS: Final = f"""
local widths = {{{_WIDTHS}}}
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
  local created = widths[bit.band(flags, {CREATED})]
  local write = widths[bit.rshift(bit.band(flags, {WRITE}), {WRITE_SHIFT})]
  if length < 8 + created + write then return nil end
  return flags, body, body + length
end
-- The value under a key; nothing where it is of another kind than ours.
local function value_of(key)
  local value = redis.pcall('GET', key)
  if type(value) == 'string' then return value end
  return nil
end
local function view_of(value, at)
  return (struct.unpack('>I{VIEW_TAG}', value, at))
end
"""

WRITE_ROWS: Final = (
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
-- Both halves of an event time plus an offset.
local function plus_offset(low, high, value, at, width)
  if width == 0 then return low, high end
  local more, upper = 0, 0
  if width == 4 then
    more = struct.unpack('<I4', value, at)
  elseif width == 6 then
    more, upper = struct.unpack('<I4I2', value, at)
  else
    more, upper = struct.unpack('<I4I4', value, at)
  end
  low, high = low + more, high + upper
  if low >= 4294967296 then low, high = low - 4294967296, high + 1 end
  if high >= 2147483648 then high = high - 4294967296 end
  return low, high
end
-- Positive if the first row is the newer one.
local function order_of(one, body, flags, other, other_body, other_flags)
  local low, high = struct.unpack('<I4i4', one, body)
  local other_low, other_high = struct.unpack('<I4i4', other, other_body)
  if high ~= other_high then return high - other_high end
  if low ~= other_low then return low - other_low end
  local width, other_width = bit.band(flags, {CREATED}), bit.band(other_flags, {CREATED})
  low, high = plus_offset(low, high, one, body + 8, widths[width])
  other_low, other_high = plus_offset(
    other_low, other_high, other, other_body + 8, widths[other_width])
  if high ~= other_high then return high - other_high end
  return low - other_low
end
-- When a row may go: one ttl after it was written or expired, whichever is later.
local function deadline_of(value, at, body, flags, written)
  local ttl = ttls[string.sub(value, at, at + {TAG - 1})]
  if ttl == nil then return math.huge end
  local low, high = struct.unpack('<I4i4', value, body)
  local event = high * 4294967296 + low
  local width = widths[bit.rshift(bit.band(flags, {WRITE}), {WRITE_SHIFT})]
  low, high = plus_offset(low, high, value, body + 8 + widths[bit.band(flags, {CREATED})], width)
  return math.max(event + ttl, high * 4294967296 + low, written) + ttl
end
-- The other sections of a value with the new one among them, and when the value may go; nothing if
-- the row that is there stays, and then how the new one compares to it.
local function merged(old, new)
  local flags, body = section(new, 1)
  local deadline = expiring and deadline_of(new, 1, body, flags, now) or math.huge
  if not old or string.byte(old) ~= {VERSION} then return {{new}}, deadline end
  local view, pieces, inserted, at = view_of(new, 1), {{}}, false, 2
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
      if old_view > view and not inserted then
        pieces[#pieces + 1] = new
        inserted = true
      end
      local other = expiring and deadline_of(old, at, old_body, old_flags, 0) or math.huge
      if other > now then
        pieces[#pieces + 1] = string.sub(old, at, after - 1)
        deadline = math.max(deadline, other)
      end
    end
    at = after
  end
  if not inserted then pieces[#pieces + 1] = new end
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
"""Writes one row into the value of each key, if it is newer than the row that is there.

KEYS: entities. ARGV: the ttl of each definition, as the function ``register`` gives them; ``1`` if
Redis removes rows by their ttl; milliseconds after which a value goes in any case, or 0; then one
packed row for each key, all of one view. Answers how many rows won, lost and were repeated.

A row with the same times stays (the first written wins), unless it was written under another
definition of the view: otherwise a new column could never be filled for times that are already
there. A damaged value is replaced. Expired rows of other views go.
"""

REMOVE_VIEW: Final = (
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
"""Removes the row of a view from the value of each key.

KEYS: entities. ARGV: the view's tag. Answers how many rows were removed.
"""
