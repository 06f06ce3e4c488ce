-- What has been counted of client-driven runs: whoever counts numbers what it tells, and may tell it again.

create table counted (
  run_id integer not null references run,
  writer text not null,
  number integer not null,
  primary key (run_id, writer)
) strict, without rowid;
