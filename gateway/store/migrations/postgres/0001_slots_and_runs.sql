-- The only clock in SQL, so that a test can step it: it serves cool-downs, retry times and what is told to people.
create function gateway_now() returns timestamptz language sql volatile as 'select clock_timestamp()';

-- Slots that several gateways share. Tokens and renewal numbers are compared, never clocks.

create table layout (
  one boolean primary key default true check (one),
  digest text,                             -- null: none was ever installed
  lease_s double precision not null default 0,
  caps text not null default '[]',
  highest_token bigint not null default 0  -- of rows that are gone; a new one gets a higher one
);
insert into layout default values;

create table slot (
  pool text not null,
  n integer not null check (n >= 1),
  token bigint not null,
  renewal bigint not null default 0,
  holder text not null,
  primary key (pool, n)
) with (fillfactor = 50);

-- Refreshed every 100 ms and worth nothing after a crash: unlogged, so that nobody waits for the disk.
create unlogged table waiting (
  holder text not null,
  pool text not null,
  waited_s double precision not null,
  said_at timestamptz not null,
  primary key (holder, pool)
) with (fillfactor = 50);

-- Runs. `part` names the partition of what belongs to a run: its own id for a submitted file, 0 for the many small
-- ones that share a partition and are deleted row by row.

create table run (
  id bigint generated always as identity primary key,
  public_id text not null unique,
  part bigint not null default 0,
  kind text not null,
  name text not null,
  author text not null,
  route text not null,
  client text not null,
  state text not null,
  reason text not null default '',
  changed_by text not null,
  changed_at timestamptz not null,
  created_at timestamptz not null,
  priority smallint not null,
  not_before timestamptz,
  max_attempts integer not null,
  options text not null,
  day text not null default '',            -- of an async run
  idempotency_key text not null,
  wrapped_key bytea,                       -- null: purged, or being purged
  dictionary bytea,
  received bigint not null default 0,
  total bigint not null default 0,
  done bigint not null default 0,
  rejected bigint not null default 0,
  failed bigint not null default 0,
  in_doubt bigint not null default 0,
  attempts bigint not null default 0,
  started_at timestamptz,
  ended_at timestamptz,
  purge_after timestamptz,
  purging boolean not null default false,  -- the key is gone, rows are still being deleted
  check (least(done, rejected, failed, in_doubt) >= 0 and done + rejected + failed + in_doubt <= total)
) with (fillfactor = 50);
create unique index run_once on run (author, idempotency_key) where idempotency_key <> '';
create index run_state on run (state, id);
create index run_purge on run (purge_after) where wrapped_key is not null or purging;
create index run_of_day on run (client, route, day) where kind = 'async';

create table lane (
  id bigint generated always as identity primary key,
  run_id bigint not null references run,
  route text not null,
  sources text[] not null,
  repeatable boolean not null,
  service text not null,
  total bigint not null default 0,
  claimed bigint not null default 0,       -- the cursor: positions below it were claimed once
  check (claimed between 0 and total and total < 4294967296),
  unique (run_id, route, sources, repeatable, service)
) with (fillfactor = 50);

-- An item's id is its lane and position in one number (lane * 2^32 + position): a lane's items lie together, in order.
-- Written once, never changed.
create table item (
  part bigint not null,
  id bigint not null,
  run_id bigint not null,
  seq bigint not null,
  key_tag bytea,
  sealed_key bytea,
  sealed bytea not null,
  primary key (part, id)
) partition by list (part);
alter table item alter sealed set storage external;

-- How an item ended: the one row that settles it. state: 0 done, 1 rejected, 2 failed, 3 in doubt.
create table result (
  part bigint not null,
  id bigint not null,
  run_id bigint not null,
  seq bigint not null,
  at timestamptz not null,
  attempts integer not null,
  status integer not null,
  took_ms integer not null,
  state smallint not null check (state between 0 and 3),
  code text not null,
  sealed bytea not null,
  primary key (part, id)
) partition by list (part);
create index result_order on result (part, run_id, state, seq);
alter table result alter sealed set storage external;

-- A file's own partition has the index on the tag alone: random entries cost what they weigh.
create table item_0 partition of item for values in (0);
create unique index item_0_key on item_0 (key_tag, run_id) where key_tag is not null;
create table result_0 partition of result for values in (0);

-- A range of positions in the hands of one process, or (`again`) the returned items that name it.
create table batch (
  id bigint generated always as identity primary key,
  lane_id bigint not null references lane,
  run_id bigint not null references run,
  holder text not null,
  token bigint not null,
  renewal bigint not null default 0,
  lo bigint not null,
  hi bigint not null,
  armed bigint not null,
  again boolean not null,
  check (lo <= armed and armed <= hi)
) with (fillfactor = 50);
create index batch_run on batch (run_id);
create index batch_lane on batch (lane_id);
create index batch_holder on batch (holder);

-- Items that wait again. Due when `due` is over, or when it is further away than its own delay (a clock was set back).
create table returned (
  id bigint primary key,
  lane_id bigint not null,
  run_id bigint not null,
  attempts integer not null,
  due timestamptz not null,
  delay_s double precision not null,
  why text not null,
  batch_id bigint                          -- null: nobody has it in hand
);
create index returned_due on returned (lane_id, due) where batch_id is null;
create index returned_batch on returned (batch_id) where batch_id is not null;

create table handle (
  handle text primary key,
  run_id bigint not null,
  id bigint not null
);
create index handle_item on handle (id);

-- What stands against bulk.

create table control (
  one boolean primary key default true check (one),
  revision bigint not null default 0,
  interruptions bigint not null default 0
);
insert into control default values;

create table hold (
  scope text primary key,
  author text not null,
  reason text not null,
  since timestamptz not null
);

create table interruption (
  source text primary key,
  number bigint not null,
  reason text not null,
  since timestamptz not null,
  cool_s double precision not null,
  skipped_by text not null default '',
  ramp_since timestamptz not null          -- the ramp lasts from here
);

create table audit (
  id bigint generated always as identity primary key,
  at timestamptz not null,
  author text not null,
  action text not null,
  subject text not null,
  detail text not null
);
