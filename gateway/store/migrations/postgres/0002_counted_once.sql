-- What has been counted of client-driven runs: whoever counts numbers what it tells, and may tell it again.

create table counted (
  run_id bigint not null references run,
  writer text not null,
  number bigint not null,
  primary key (run_id, writer)
);
