use super::*;

fn parse(rules: &[&str]) -> Retention {
    Retention::parse(rules).unwrap_or_else(|e| panic!("{e:?}"))
}

fn utc(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).unwrap_or_else(|e| panic!("{text}: {e}")).with_timezone(&Utc)
}

/// The creation times (of those given, oldest first) that the rules keep.
fn kept(tz: Zone, rules: &[&str], now: &str, creations: &[&str]) -> Vec<String> {
    let retention = parse(rules);
    let mut tally = Tally::new(tz, utc(now));
    tally.restart(retention.rules());
    let counts = in_order(creations.iter().map(|c| utc(c)), utc(now));
    let newest_first = creations.iter().zip(counts).rev();
    let mut kept: Vec<String> =
        newest_first.filter(|(c, counts)| tally.keep(utc(c), *counts) != 0).map(|(c, _)| (*c).to_owned()).collect();
    kept.reverse();
    kept
}

#[test]
fn valid_rules_parse() {
    for (text, count, period, window) in [
        ("24 in last day", 24, None, TimeDelta::hours(24)),
        ("1/day in last week", 1, Some(Period::Day), TimeDelta::days(7)),
        ("1/week in last month", 1, Some(Period::Week), TimeDelta::days(31)),
        ("2/month in last year", 2, Some(Period::Month), TimeDelta::days(366)),
        ("1/year in last 10 years", 1, Some(Period::Year), TimeDelta::days(3660)),
        ("all in last 36 hours", u32::MAX, None, TimeDelta::hours(36)),
        ("all/minute in last 1 hour", u32::MAX, Some(Period::Minute), TimeDelta::hours(1)),
        ("1/hour in last 3 months", 1, Some(Period::Hour), TimeDelta::days(93)),
        ("  5   in\tlast   2 weeks ", 5, None, TimeDelta::days(14)),
        ("5 in last days", 5, None, TimeDelta::days(1)),
        ("5 in last 2 minute", 5, None, TimeDelta::minutes(2)),
        ("1/day in last 30d", 1, Some(Period::Day), TimeDelta::days(30)),
        ("5 in last 6h", 5, None, TimeDelta::hours(6)),
        ("5 in last 2weeks", 5, None, TimeDelta::days(14)),
        ("1000000/year in last 1000000 years", 1_000_000, Some(Period::Year), TimeDelta::days(366_000_000)),
    ] {
        let rule = Rule::parse(text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        assert_eq!((rule.count, rule.period, rule.window), (count, period, window), "{text}");
        assert_eq!(rule.to_string(), text.trim());
    }
}

#[test]
fn error_points_at_the_invalid_word() {
    for (text, word, reason) in [
        ("", "", "the number is missing; a rule is \"N in last WINDOW\" or"),
        ("0 in last day", "0", "0 would keep nothing; omit the rule"),
        ("0/day in last week", "0", "0 would keep nothing"),
        ("-1 in last day", "-1", "\"-1\" is neither a number nor \"all\""),
        ("1.5/day in last day", "1.5", "\"1.5\" is neither a number"),
        ("/day in last day", "", "\"\" is neither a number"),
        ("every in last day", "every", "\"every\" is neither a number"),
        ("ALL in last day", "ALL", "\"ALL\" is neither a number"),
        ("1000001 in last day", "1000001", "the number is larger than 1000000"),
        ("99999999999999999999 in last day", "99999999999999999999", "the number is larger"),
        (
            "1/fortnight in last year",
            "fortnight",
            "\"fortnight\" is not a period; expected minute, hour, day, week, month or year",
        ),
        ("1/days in last year", "days", "\"days\" is not a period"),
        ("1/ in last year", "", "\"\" is not a period"),
        ("1/day/week in last year", "day/week", "\"day/week\" is not a period"),
        ("1 / day in last year", "/", "found \"/\", expected \"in\""),
        ("1/day", "", "\"in\" is missing"),
        ("1/day for last week", "for", "found \"for\", expected \"in\""),
        ("1/day in", "", "\"last\" is missing"),
        ("1/day in the last week", "the", "found \"the\", expected \"last\""),
        ("1/day in last", "", "the window is missing"),
        ("1/day in last 3", "", "the window's unit is missing"),
        ("1/day in last 0 days", "0", "the window's count is not from 1 to 1000000"),
        ("1/day in last 9999999 years", "9999999", "the window's count is not from 1"),
        ("1/day in last fortnight", "fortnight", "\"fortnight\" is not a unit of time"),
        ("1/day in last 3 sols", "sols", "\"sols\" is not a unit of time"),
        ("1/day in last 3m", "m", "\"m\" is not a unit of time"),
        ("1/day in last 0d", "0", "the window's count is not from 1"),
        ("1/day in last 3 dayss", "dayss", "\"dayss\" is not a unit of time"),
        ("1/day in last week or so", "or so", "\"or\" is unexpected"),
        ("1/day in last wöche", "wöche", "\"wöche\" is not a unit of time"),
    ] {
        let errors = Retention::parse(&[text]).unwrap_err();
        let [(0, error)] = errors.as_slice() else { panic!("{text}: {errors:?}") };
        assert_eq!(&text[error.at.clone()], word, "{text}: {error}");
        assert!(error.reason.starts_with(reason), "{text}: {}", error.reason);
        if word.is_empty() && error.reason.contains("missing") {
            assert_eq!(error.at, text.len()..text.len(), "{text}: a missing word is reported at the end");
        }
    }
}

#[test]
fn all_invalid_rules_of_a_list_are_reported() {
    let errors = Retention::parse(&["24 in last day", "x", "1/day in last week", "1/eon in last week"]).unwrap_err();
    assert_eq!(errors.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(
        errors[1].1.to_string(),
        "\"1/eon in last week\" is not a retention rule: \"eon\" is not a period; expected minute, hour, day, week, month or year"
    );
}

#[test]
fn empty_and_too_long_lists_are_rejected() {
    let errors = Retention::parse::<&str>(&[]).unwrap_err();
    assert_eq!(errors[0].1.reason, "the list is empty, which would keep nothing; omit it to keep all");
    let errors = Retention::parse(&["1 in last day"; MAX_RULES + 1]).unwrap_err();
    assert_eq!(errors[0].1.reason, "the list has more than 32 rules");
}

#[test]
fn rule_without_period_keeps_newest_in_window() {
    let all = ["2026-11-20T09:59:59Z", "2026-11-20T10:00:00Z", "2026-11-20T20:00:00Z", "2026-11-21T09:00:00Z"];
    let now = "2026-11-21T10:00:00Z";
    assert_eq!(kept(Zone::UTC, &["2 in last day"], now, &all), all[2..]);
    assert_eq!(
        kept(Zone::UTC, &["9 in last day"], now, &all),
        all[1..],
        "a snapshot exactly as old as the window is in it"
    );
    assert_eq!(kept(Zone::UTC, &["all in last 25 hours"], now, &all), all);
    assert_eq!(kept(Zone::UTC, &["1 in last hour", "all in last day"], now, &all), all[1..]);
    assert!(kept(Zone::UTC, &["9 in last minute"], now, &all).is_empty());
}

#[test]
fn rule_with_period_keeps_newest_of_each_period() {
    let all = [
        "2026-10-30T12:00:00Z", // Friday, week 44
        "2026-11-01T12:00:00Z", // Sunday, week 44
        "2026-11-02T00:00:00Z", // Monday, week 45
        "2026-11-08T23:59:59Z", // Sunday, week 45
        "2026-11-09T00:00:00Z", // Monday, week 46
        "2026-12-31T23:59:59Z",
        "2027-01-01T00:00:00Z",
        "2027-01-01T00:00:59Z",
        "2027-01-01T00:01:00Z",
    ];
    let now = "2027-01-01T00:30:00Z";
    assert_eq!(kept(Zone::UTC, &["1/week in last year"], now, &all), [all[1], all[3], all[4], all[8]]);
    assert_eq!(kept(Zone::UTC, &["1/month in last year"], now, &all), [all[0], all[4], all[5], all[8]]);
    assert_eq!(kept(Zone::UTC, &["1/year in last year"], now, &all), [all[5], all[8]]);
    assert_eq!(kept(Zone::UTC, &["1/hour in last day"], now, &all), [all[5], all[8]]);
    assert_eq!(kept(Zone::UTC, &["1/minute in last day"], now, &all), [all[5], all[7], all[8]]);
    assert_eq!(kept(Zone::UTC, &["2/day in last month"], now, &all), [all[5], all[7], all[8]]);
    assert_eq!(kept(Zone::UTC, &["all/day in last month"], now, &all), all[5..]);
}

#[test]
fn periods_follow_the_time_zone() {
    let berlin = "Europe/Berlin".parse().unwrap();
    let all = ["2026-11-22T22:59:59Z", "2026-11-22T23:00:00Z", "2026-11-23T22:59:59Z"];
    let now = "2026-11-23T23:30:00Z";
    assert_eq!(kept(berlin, &["1/day in last week"], now, &all), [all[0], all[2]], "midnight is at 23:00 UTC");
    assert_eq!(kept(Zone::UTC, &["1/day in last week"], now, &all), [all[1], all[2]]);
    assert_eq!(kept(berlin, &["1/week in last month"], now, &all), [all[0], all[2]], "the 23rd is a Monday");
    // The repeated hour, 02:00 to 03:00 local time, counts as two periods.
    let night = ["2026-10-25T00:10:00Z", "2026-10-25T00:50:00Z", "2026-10-25T01:10:00Z", "2026-10-25T01:50:00Z"];
    assert_eq!(kept(berlin, &["1/hour in last day"], "2026-10-25T02:00:00Z", &night), [night[1], night[3]]);
    assert_eq!(kept(berlin, &["1/day in last day"], "2026-10-25T02:00:00Z", &night), [night[3]]);
    // 30 minutes in Lord Howe: 01:00-02:00 (+11), then 01:30-02:00 (+10:30).
    let night = ["2027-04-03T14:30:00Z", "2027-04-03T14:59:00Z", "2027-04-03T15:01:00Z", "2027-04-03T15:31:00Z"];
    let lord_howe = "Australia/Lord_Howe".parse().unwrap();
    assert_eq!(
        kept(lord_howe, &["1/hour in last day"], "2027-04-03T16:00:00Z", &night),
        [night[1], night[2], night[3]]
    );
}

#[test]
fn wrong_clock_affects_no_other_snapshots() {
    let now = "2026-11-23T12:00:00Z";
    // They were taken in this order; the second is dated ten years ahead, the fourth far back.
    let all = [
        "2026-11-23T08:00:00Z",
        "2036-11-23T09:00:00Z",
        "2026-11-23T10:00:00Z",
        "1970-01-01T00:00:00Z",
        "2026-11-23T11:00:00Z",
    ];
    assert_eq!(kept(Zone::UTC, &["1/day in last week"], now, &all), [all[1], all[4]]);
    assert_eq!(kept(Zone::UTC, &["2/day in last week"], now, &all), [all[1], all[2], all[4]]);
    assert_eq!(kept(Zone::UTC, &["all in last 3 hours"], now, &all), [all[1], all[2], all[4]]);
    assert_eq!(
        kept(Zone::UTC, &["3 in last week"], now, &all),
        [all[0], all[1], all[2], all[4]],
        "the misdated ones take no place"
    );
    // What is dated before an older snapshot does not push that one out of its period.
    let zigzag = ["2026-11-20T01:00:00Z", "2026-11-21T01:00:00Z", "2026-11-20T02:00:00Z", "2026-11-22T01:00:00Z"];
    assert_eq!(kept(Zone::UTC, &["1/day in last week"], now, &zigzag), zigzag);
}
