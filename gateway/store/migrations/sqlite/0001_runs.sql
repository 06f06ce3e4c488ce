-- Runs and what belongs to them. Instants and spans are microseconds; instants count from 1970, UTC.
-- An item's id is its lane and position in one number (lane * 2^32 + position), so that a lane's items lie together
-- and in order, and a result needs no index to find its item.

create table run (
  run_id integer primary key autoincrement,
  public_id text not null unique,
  kind text not null,
  name text not null,
  author text not null,
  route text not null,
  client text not null,
  day text not null,                    -- async: the option `day`
  state text not null,
  reason text not null,
  changed_by text not null,
  changed_at integer not null,
  created_at integer not null,
  priority integer not null,
  not_before integer,
  max_attempts integer not null,
  options text not null,
  idempotency_key text not null,
  wrapped_key blob,                     -- null: purged, or being purged
  dictionary blob,
  purging integer not null default 0,   -- 1: the key is gone, rows are still being deleted
  received integer not null default 0,
  total integer not null default 0,
  done integer not null default 0,
  rejected integer not null default 0,
  failed integer not null default 0,
  in_doubt integer not null default 0,
  attempts integer not null default 0,
  started_at integer,
  ended_at integer,
  purge_after integer,
  check (done >= 0 and rejected >= 0 and failed >= 0 and in_doubt >= 0),
  check (done + rejected + failed + in_doubt <= total)
) strict;
create unique index run_idempotency on run (author, idempotency_key) where idempotency_key <> '';
create index run_state on run (state);
create index run_purge on run (purge_after) where wrapped_key is not null or purging = 1;
create index run_async on run (client, route, day) where kind = 'async';

create table lane (
  lane_id integer primary key,
  run_id integer not null references run,
  route text not null,
  sources text not null,                -- JSON, sorted
  repeatable integer not null,
  service text not null,
  total integer not null default 0,
  next integer not null default 0,      -- the cursor: positions below it were claimed
  check (next between 0 and total),
  unique (run_id, route, sources, repeatable, service)
) strict;

-- Written once, never changed.
create table item (
  id integer primary key,
  seq integer not null,
  sealed_key blob,
  sealed blob not null
) strict;

create table client_key (
  run_id integer not null,
  key_tag blob not null,
  primary key (run_id, key_tag)
) strict, without rowid;

create table handle (
  handle text primary key,
  id integer not null references item
) strict, without rowid;
create index handle_item on handle (id);

-- How an item ended: the one row that settles it. state: 0 done, 1 rejected, 2 failed, 3 in doubt.
create table result (
  id integer primary key references item,
  run_id integer not null,
  state integer not null check (state between 0 and 3),
  seq integer not null,
  attempts integer not null,
  status integer not null,
  code text not null,
  took_ms integer not null,
  at integer not null,
  sealed blob not null
) strict;
create index result_order on result (run_id, state, seq);

create table batch (
  batch_id integer primary key autoincrement,   -- never used twice
  lane_id integer not null references lane,
  run_id integer not null references run,
  holder text not null,
  token integer not null,
  renewal integer not null default 0,
  lo integer not null,
  hi integer not null,
  armed integer not null,
  again integer not null,
  check (lo <= armed and armed <= hi)
) strict;
create index batch_run on batch (run_id);
create index batch_lane on batch (lane_id);
create index batch_holder on batch (holder);

-- Items that wait again; batch_id: claimed by a batch of returned items.
create table returned (
  id integer primary key references item,
  lane_id integer not null,
  run_id integer not null,
  attempts integer not null,
  due integer not null,
  delay integer not null,
  why text not null,
  batch_id integer
) strict;
create index returned_due on returned (lane_id, due, delay) where batch_id is null;
create index returned_batch on returned (batch_id) where batch_id is not null;

create table hold (
  scope text primary key,
  author text not null,
  reason text not null,
  since integer not null
) strict, without rowid;

create table interruption (
  source text primary key,
  number integer not null,
  reason text not null,
  since integer not null,
  cool integer not null,
  skipped_by text not null default '',
  ramp_since integer not null           -- the ramp lasts from here
) strict, without rowid;

create table control (
  one integer primary key check (one = 1),
  revision integer not null,
  number integer not null               -- of the last interruption
) strict;
insert into control values (1, 0, 0);

create table audit (
  id integer primary key autoincrement,
  at integer not null,
  author text not null,
  action text not null,
  subject text not null,
  detail text not null
) strict;
