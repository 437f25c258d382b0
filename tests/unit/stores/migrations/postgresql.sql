CREATE TABLE public.cooldowns (
    service character varying(63) NOT NULL,
    until timestamp with time zone NOT NULL,
    length interval NOT NULL
);
CREATE TABLE public.episodes (
    id character varying NOT NULL,
    service character varying NOT NULL,
    version character varying NOT NULL,
    kind character varying NOT NULL,
    window_end timestamp with time zone NOT NULL,
    opened_at timestamp with time zone NOT NULL,
    as_of timestamp with time zone NOT NULL,
    features json NOT NULL,
    reason character varying NOT NULL,
    emitted_at timestamp with time zone,
    accepted boolean,
    run_name character varying,
    decision character varying,
    closed_at timestamp with time zone,
    outcome character varying
);
CREATE TABLE public.events (
    service character varying(63) NOT NULL,
    episode character varying(200) NOT NULL,
    kind character varying(16) NOT NULL,
    opened_at timestamp with time zone NOT NULL,
    as_of timestamp with time zone NOT NULL,
    features json NOT NULL,
    reason text NOT NULL,
    accepted boolean NOT NULL,
    run_name character varying(63),
    decision text NOT NULL,
    received integer NOT NULL,
    first_received timestamp with time zone NOT NULL,
    last_received timestamp with time zone NOT NULL
);
CREATE TABLE public.held (
    id integer NOT NULL,
    service character varying NOT NULL,
    kind character varying NOT NULL,
    version character varying NOT NULL,
    start timestamp with time zone NOT NULL,
    "end" timestamp with time zone NOT NULL,
    level integer NOT NULL,
    rows integer NOT NULL,
    newest timestamp with time zone,
    body bytea NOT NULL
);
CREATE SEQUENCE public.held_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.held_id_seq OWNED BY public.held.id;
CREATE TABLE public.performance (
    service character varying NOT NULL,
    start timestamp with time zone NOT NULL,
    version character varying NOT NULL,
    "end" timestamp with time zone NOT NULL,
    rows integer NOT NULL,
    labelled integer NOT NULL,
    status character varying NOT NULL,
    live boolean NOT NULL,
    drifted boolean,
    auc double precision,
    log_loss double precision,
    brier double precision,
    ece double precision,
    reference_auc double precision,
    note character varying
);
CREATE TABLE public.progress (
    service character varying NOT NULL,
    cursor bigint NOT NULL,
    revision bigint NOT NULL,
    watermark timestamp with time zone,
    late_rows bigint NOT NULL,
    early_rows bigint NOT NULL,
    malformed bigint NOT NULL
);
CREATE TABLE public.runs (
    name character varying(63) NOT NULL,
    service character varying(63) NOT NULL,
    episode character varying(200) NOT NULL,
    status character varying(16) NOT NULL,
    outcome character varying(16),
    detail text,
    result json,
    attempts integer NOT NULL,
    failures integer NOT NULL,
    not_before timestamp with time zone,
    holder character varying(200),
    lease_until timestamp with time zone,
    created_at timestamp with time zone NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    revision integer NOT NULL
);
CREATE TABLE public.versions (
    service character varying NOT NULL,
    version character varying NOT NULL,
    uri character varying,
    live_since timestamp with time zone
);
CREATE TABLE public.window_scores (
    service character varying NOT NULL,
    start timestamp with time zone NOT NULL,
    version character varying NOT NULL,
    feature character varying NOT NULL,
    kind character varying NOT NULL,
    "end" timestamp with time zone NOT NULL,
    statistic double precision,
    p_value double precision,
    p_adjusted double precision,
    effect double precision,
    psi double precision,
    rows integer,
    missing_share double precision,
    importance double precision NOT NULL,
    drifted boolean NOT NULL
);
CREATE TABLE public.windows (
    service character varying NOT NULL,
    start timestamp with time zone NOT NULL,
    version character varying NOT NULL,
    "end" timestamp with time zone NOT NULL,
    rows integer NOT NULL,
    status character varying NOT NULL,
    live boolean NOT NULL,
    drifted boolean,
    importance double precision,
    prediction_drifted boolean,
    note character varying
);
ALTER TABLE ONLY public.held ALTER COLUMN id SET DEFAULT nextval('public.held_id_seq'::regclass);
INSERT INTO public.cooldowns VALUES ('flights', '2013-07-15 00:00:00+00', '14 days');
INSERT INTO public.events VALUES ('flights', 'flights-20130701', 'drift', '2013-07-01 00:00:00+00', '2013-07-01 00:00:00+00', '["dep_delay"]', 'PSI of dep_delay', true, 'flights-20130701-87c433bb', 'starts flights-20130701-87c433bb', 1, '2026-01-01 00:00:00+00', '2026-01-01 00:00:00+00');
INSERT INTO public.events VALUES ('flights', 'flights-20130731', 'drift', '2013-07-31 00:00:00+00', '2013-07-31 00:00:00+00', '["dep_delay"]', 'PSI of dep_delay', true, 'flights-20130731-0e9b8ecf', 'starts flights-20130731-0e9b8ecf', 1, '2026-01-01 00:00:00+00', '2026-01-01 00:00:00+00');
INSERT INTO public.events VALUES ('flights', 'flights-20130801', 'drift', '2013-08-01 00:00:00+00', '2013-08-01 00:00:00+00', '["dep_delay"]', 'PSI of dep_delay', false, NULL, 'absorbed: flights-20130731-0e9b8ecf is under way', 1, '2026-01-01 00:00:00+00', '2026-01-01 00:00:00+00');
INSERT INTO public.held VALUES (1, 'flights', 'features', '1', '2013-04-01 00:00:00+00', '2013-04-02 00:00:00+00', 0, 3, '2013-04-01 01:00:00+00', '\xffffffff780000001000000000000a000c000600050008000a000000000104000c000000080008000000040008000000040000000100000014000000100014000800060007000c00000010001000000000000102100000001c0000000400000000000000010000006e00000008000c0008000700080000000000000140000000ffffffffa000000014000000000000000c0018000600050008000c000c000000000304001c0000002800000000000000000000000c001e001000040008000c000c00000050000000240000001800000003000000000000000000000000000600080007000600000000000001020000000000000000000000000000000000000000000000000000002500000000000000000000000100000003000000000000000000000000000000180000000000000028b52ffd2018a5000060010002000300000000000000020060e0016001000000ffffffff00000000');
INSERT INTO public.progress VALUES ('flights', 7, 1, '2013-04-01 00:00:00+00', 3, 0, 0);
INSERT INTO public.runs VALUES ('flights-20130701-87c433bb', 'flights', 'flights-20130701', 'succeeded', 'promoted', 'better by 0.02', '{"promote": true, "version": "2"}', 1, 0, NULL, NULL, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:00:00+00', '2026-01-01 00:00:00+00', 3);
INSERT INTO public.runs VALUES ('flights-20130731-0e9b8ecf', 'flights', 'flights-20130731', 'failed', NULL, 'no labels', NULL, 1, 1, '2026-01-01 00:00:05+00', NULL, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:00:00+00', NULL, 3);
INSERT INTO public.versions VALUES ('flights', '1', 's3://models/1', '2013-04-01 00:00:00+00');
SELECT pg_catalog.setval('public.held_id_seq', 1, true);
ALTER TABLE ONLY public.cooldowns
    ADD CONSTRAINT cooldowns_pkey PRIMARY KEY (service);
ALTER TABLE ONLY public.episodes
    ADD CONSTRAINT episodes_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (service, episode);
ALTER TABLE ONLY public.held
    ADD CONSTRAINT held_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.performance
    ADD CONSTRAINT performance_pkey PRIMARY KEY (service, start, version);
ALTER TABLE ONLY public.progress
    ADD CONSTRAINT progress_pkey PRIMARY KEY (service);
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_service_episode_key UNIQUE (service, episode);
ALTER TABLE ONLY public.versions
    ADD CONSTRAINT versions_pkey PRIMARY KEY (service, version);
ALTER TABLE ONLY public.window_scores
    ADD CONSTRAINT window_scores_pkey PRIMARY KEY (service, start, version, feature, kind);
ALTER TABLE ONLY public.windows
    ADD CONSTRAINT windows_pkey PRIMARY KEY (service, start, version);
CREATE INDEX held_by_part ON public.held USING btree (service, kind, start, version);
CREATE UNIQUE INDEX one_active_run ON public.runs USING btree (service) WHERE ((status)::text = ANY ((ARRAY['requested'::character varying, 'starting'::character varying, 'running'::character varying, 'failed'::character varying])::text[]));
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_service_episode_fkey FOREIGN KEY (service, episode) REFERENCES public.events(service, episode);
