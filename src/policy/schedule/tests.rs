use super::*;

fn berlin() -> Zone {
    "Europe/Berlin".parse().unwrap()
}

fn new_york() -> Zone {
    "America/New_York".parse().unwrap()
}

fn lord_howe() -> Zone {
    "Australia/Lord_Howe".parse().unwrap()
}

fn schedule(text: &str) -> Schedule {
    text.parse().unwrap_or_else(|e| panic!("{e}"))
}

fn utc(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).unwrap_or_else(|e| panic!("{text}: {e}")).with_timezone(&Utc)
}

/// The slots after one moment up to another, as local times with their offsets.
fn slots(text: &str, tz: Zone, after: &str, until: &str) -> Vec<String> {
    let (schedule, until, mut at) = (schedule(text), utc(until), utc(after));
    let mut found = vec![];
    while let Some(slot) = schedule.next_slot(tz, at).filter(|s| *s <= until && found.len() < 20) {
        assert_eq!(schedule.last_slot(tz, slot), Some(slot), "{text}: at the moment of a slot, it is the last one");
        found.push(slot.with_timezone(&tz).format("%a %m-%d %H:%M %z").to_string());
        at = slot;
    }
    found
}

#[test]
fn schedule_with_two_day_fields_that_must_match_fires_in_the_years_in_which_they_do() {
    let slot = |text: &str, after: &str| {
        let schedule: Schedule = text.parse().unwrap_or_else(|error| panic!("{error}"));
        let after: DateTime<Utc> = after.parse().unwrap();
        let next = schedule.next_slot("UTC".parse().unwrap(), after).unwrap();
        assert_eq!(schedule.last_slot("UTC".parse().unwrap(), next), Some(next));
        next.date_naive().to_string()
    };
    // New Year on a Sunday, Tuesday, Thursday or Saturday; 29 February on a Sunday or Thursday.
    assert_eq!(slot("0 0 1 1 */2", "2024-01-02T00:00:00Z"), "2026-01-01");
    assert_eq!(slot("0 0 29 2 */4", "2032-03-01T00:00:00Z"), "2052-02-29");
}

#[test]
fn fields_follow_crontab() {
    // November 2026: the 1st is a Sunday.
    for (text, expected) in [
        ("0 0 * * *", vec!["Mon 11-02 00:00", "Tue 11-03 00:00", "Wed 11-04 00:00"]),
        ("@daily", vec!["Mon 11-02 00:00", "Tue 11-03 00:00", "Wed 11-04 00:00"]),
        ("@midnight", vec!["Mon 11-02 00:00", "Tue 11-03 00:00", "Wed 11-04 00:00"]),
        ("@MIDNIGHT", vec!["Mon 11-02 00:00", "Tue 11-03 00:00", "Wed 11-04 00:00"]),
        ("@hourly", vec!["Sun 11-01 01:00", "Sun 11-01 02:00", "Sun 11-01 03:00"]),
        ("@weekly", vec!["Sun 11-08 00:00", "Sun 11-15 00:00", "Sun 11-22 00:00"]),
        ("@monthly", vec!["Tue 12-01 00:00", "Fri 01-01 00:00", "Mon 02-01 00:00"]),
        ("@yearly", vec!["Fri 01-01 00:00", "Sat 01-01 00:00", "Mon 01-01 00:00"]),
        ("@annually", vec!["Fri 01-01 00:00", "Sat 01-01 00:00", "Mon 01-01 00:00"]),
        ("*/25 6 * * *", vec!["Sun 11-01 06:00", "Sun 11-01 06:25", "Sun 11-01 06:50"]),
        ("7-59/26 6 * * *", vec!["Sun 11-01 06:07", "Sun 11-01 06:33", "Sun 11-01 06:59"]),
        ("50,5 6,4 * * *", vec!["Sun 11-01 04:05", "Sun 11-01 04:50", "Sun 11-01 06:05"]),
        ("1-3/2,30 0 * * *", vec!["Sun 11-01 00:01", "Sun 11-01 00:03", "Sun 11-01 00:30"]),
        ("0 12 * * 0", vec!["Sun 11-01 12:00", "Sun 11-08 12:00", "Sun 11-15 12:00"]),
        ("0 12 * * 7", vec!["Sun 11-01 12:00", "Sun 11-08 12:00", "Sun 11-15 12:00"]),
        ("0 12 * * sun", vec!["Sun 11-01 12:00", "Sun 11-08 12:00", "Sun 11-15 12:00"]),
        ("0 12 * * 5-7", vec!["Sun 11-01 12:00", "Fri 11-06 12:00", "Sat 11-07 12:00"]),
        ("0 12 * * Sat-SUN", vec!["Sun 11-01 12:00", "Sat 11-07 12:00", "Sun 11-08 12:00"]),
        ("0 12 * * mon-wed", vec!["Mon 11-02 12:00", "Tue 11-03 12:00", "Wed 11-04 12:00"]),
        ("0 12 * JAN,feb *", vec!["Fri 01-01 12:00", "Sat 01-02 12:00", "Sun 01-03 12:00"]),
        // One of the day fields must match if both are restricted.
        ("0 12 13 * fri", vec!["Fri 11-06 12:00", "Fri 11-13 12:00", "Fri 11-20 12:00"]),
        ("0 12 3 * fri", vec!["Tue 11-03 12:00", "Fri 11-06 12:00", "Fri 11-13 12:00"]),
        // Both must match if one begins with "*".
        ("0 12 */2 * fri", vec!["Fri 11-13 12:00", "Fri 11-27 12:00", "Fri 12-11 12:00"]),
        // Sundays and Fridays; 13 February 2027 is a Saturday.
        ("0 12 13 * */5", vec!["Fri 11-13 12:00", "Sun 12-13 12:00", "Sun 06-13 12:00"]),
        ("0 0 29 2 *", vec!["Tue 02-29 00:00", "Sun 02-29 00:00", "Fri 02-29 00:00"]),
        ("0 0 31 * *", vec!["Thu 12-31 00:00", "Sun 01-31 00:00", "Wed 03-31 00:00"]),
        ("59 23 31 12 *", vec!["Thu 12-31 23:59", "Fri 12-31 23:59", "Sun 12-31 23:59"]),
        ("  0   0  *  *  1  ", vec!["Mon 11-02 00:00", "Mon 11-09 00:00", "Mon 11-16 00:00"]),
    ] {
        let mut found = slots(text, Zone::UTC, "2026-11-01T00:00:00Z", "2043-01-01T00:00:00Z");
        found.truncate(3);
        let found: Vec<&str> = found.iter().map(|s| s.trim_end_matches(" +0000")).collect();
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn invalid_schedule_is_rejected_with_reason() {
    for (text, reason) in [
        ("", "expected five fields (minute, hour, day of month, month and day of week), found 0"),
        ("* * * *", "found 4"),
        ("0 0 0 * * *", "found 6"),
        ("0 0 1 1 * 2026", "found 6"),
        ("60 * * * *", "in the minute \"60\", 60 is not in 0-59"),
        ("* 24 * * *", "in the hour \"24\", 24 is not in 0-23"),
        ("* * 0 * *", "in the day of month \"0\", 0 is not in 1-31"),
        ("* * * 13 *", "in the month \"13\", 13 is not in 1-12"),
        ("* * * * 8", "in the day of week \"8\", 8 is not in 0-7"),
        ("99999999999 * * * *", "99999999999 is not in 0-59"),
        ("*/0 * * * *", "the step \"0\" is not a number from 1 to 59"),
        ("*/x * * * *", "the step \"x\" is not"),
        ("*/ * * * *", "the step \"\" is not"),
        ("*/+5 * * * *", "the step \"+5\" is not"),
        ("5/15 * * * *", "a step follows a range or \"*\", not \"5\""),
        ("/15 * * * *", "a step follows a range or \"*\", not \"\""),
        ("10-5 * * * *", "the range \"10-5\" runs backwards"),
        ("0 0 * * fri-mon", "the range \"fri-mon\" runs backwards"),
        ("1,,2 * * * *", "an element of the list is empty"),
        ("1, * * * *", "an element of the list is empty"),
        ("- * * * *", "\"\" is not a number from 0 to 59"),
        ("-1 * * * *", "\"\" is not a number from 0 to 59"),
        ("1-2-3 * * * *", "\"2-3\" is not a number"),
        ("1.5 * * * *", "\"1.5\" is not a number"),
        ("* * * mon *", "in the month \"mon\", \"mon\" is not a number from 1 to 12 or a name from jan to dec"),
        ("* * * * jan", "in the day of week \"jan\", \"jan\" is not a number from 0 to 7 or a name from sun to sat"),
        ("* * * * monday", "\"monday\" is not a number"),
        ("* * * january *", "\"january\" is not a number"),
        ("* * * * 1jan", "\"1jan\" is not a number"),
        ("* * L * *", "\"L\" is not a number from 1 to 31"),
        ("* * 15W * *", "\"15W\" is not a number"),
        ("* * * * 5#2", "\"5#2\" is not a number"),
        ("* * ? * *", "\"?\" is not a number"),
        ("* * * * +1", "\"+1\" is not a number"),
        ("0 0 31 2 *", "it never fires: none of these months has such a day"),
        ("0 0 30 feb *", "it never fires"),
        ("0 0 31 4,6,9,11 *", "it never fires"),
        ("@reboot", "@reboot is not a time"),
        ("@every 5m", "the known names are @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually"),
        ("hourly", "write \"@hourly\""),
        ("0", "found 1"),
        ("* * * * * ; rm", "found 7"),
        ("٣ * * * *", "is not a number"),
    ] {
        let error = text.parse::<Schedule>().unwrap_err();
        assert!(error.reason.contains(reason), "{text:?}: {}", error.reason);
    }
    let error = "61 * * * *".parse::<SyncPolicy>().unwrap_err();
    assert_eq!(error.to_string(), "\"61 * * * *\" is not a cron schedule: in the minute \"61\", 61 is not in 0-59");
    assert_eq!("asap".parse::<SyncPolicy>().map(|p| p.to_string()), Ok("asap".to_owned()));
}

#[test]
fn schedule_displays_its_source_text() {
    for text in ["@hourly", "*/5 * * * mon-fri", "0 1 * * *"] {
        assert_eq!(schedule(text).to_string(), text);
    }
    assert_eq!(schedule(" 0 1 * * * "), schedule("0 1 * * *"));
}

#[test]
fn slot_in_gap_fires_once_after_it() {
    // Europe/Berlin, 28 March 2027: 02:00 becomes 03:00.
    let night = |text| slots(text, berlin(), "2027-03-27T22:00:00Z", "2027-03-28T04:00:00Z");
    assert_eq!(night("30 2 * * *"), ["Sun 03-28 03:00 +0200"]);
    assert_eq!(night("0,15,30,45 2 * * *"), ["Sun 03-28 03:00 +0200"], "several slots in one gap fire once");
    assert_eq!(night("0 2,3 * * *"), ["Sun 03-28 03:00 +0200"], "a slot moved onto another slot fires once");
    assert_eq!(night("30 1,2,3 * * *"), ["Sun 03-28 01:30 +0100", "Sun 03-28 03:00 +0200", "Sun 03-28 03:30 +0200"]);
    assert_eq!(
        night("0 */2 * * *"),
        ["Sun 03-28 00:00 +0100", "Sun 03-28 03:00 +0200", "Sun 03-28 04:00 +0200", "Sun 03-28 06:00 +0200"]
    );
    // America/New_York, 14 March 2027: 02:00 becomes 03:00.
    let night = |text| slots(text, new_york(), "2027-03-14T04:30:00Z", "2027-03-14T08:00:00Z");
    assert_eq!(night("15 2 * * *"), ["Sun 03-14 03:00 -0400"]);
    // Australia/Lord_Howe, 3 October 2027: 02:00 becomes 02:30.
    let night = |text| slots(text, lord_howe(), "2027-10-02T14:00:00Z", "2027-10-02T17:00:00Z");
    assert_eq!(night("15 2 * * *"), ["Sun 10-03 02:30 +1100"]);
    assert_eq!(night("15,45 2 * * *"), ["Sun 10-03 02:30 +1100", "Sun 10-03 02:45 +1100"]);
    // Pacific/Apia had no 30 December 2011 at all.
    let days = slots("30 12 * * *", "Pacific/Apia".parse().unwrap(), "2011-12-29T00:00:00Z", "2011-12-31T12:00:00Z");
    assert_eq!(days, ["Thu 12-29 12:30 -1000", "Sat 12-31 00:00 +1400", "Sat 12-31 12:30 +1400"]);
}

#[test]
fn repeated_slot_fires_once_at_first_occurrence() {
    // Europe/Berlin, 31 October 2027: 03:00 becomes 02:00.
    let night = |text| slots(text, berlin(), "2027-10-30T22:30:00Z", "2027-10-31T04:00:00Z");
    assert_eq!(night("30 2 * * *"), ["Sun 10-31 02:30 +0200"]);
    assert_eq!(night("0 2,3 * * *"), ["Sun 10-31 02:00 +0200", "Sun 10-31 03:00 +0100"]);
    // America/New_York, 7 November 2027: 02:00 becomes 01:00.
    let night = |text| slots(text, new_york(), "2027-11-07T03:30:00Z", "2027-11-07T08:00:00Z");
    assert_eq!(night("30 1 * * *"), ["Sun 11-07 01:30 -0400"]);
    // Australia/Lord_Howe, 4 April 2027: 02:00 becomes 01:30.
    let night = |text| slots(text, lord_howe(), "2027-04-03T12:00:00Z", "2027-04-03T18:00:00Z");
    assert_eq!(night("15,45 1 * * *"), ["Sun 04-04 01:15 +1100", "Sun 04-04 01:45 +1100"]);
    // The second 02:30 is not a slot, so the last slot before it is the first 02:30.
    let daily = schedule("30 2 * * *");
    assert_eq!(daily.last_slot(berlin(), utc("2027-10-31T01:45:00Z")), Some(utc("2027-10-31T00:30:00Z")));
    assert_eq!(daily.next_slot(berlin(), utc("2027-10-31T00:45:00Z")), Some(utc("2027-11-01T01:30:00Z")));
}

#[test]
fn schedule_for_every_hour_runs_in_real_time() {
    assert_eq!(
        slots("0 * * * *", berlin(), "2027-03-27T23:30:00Z", "2027-03-28T02:00:00Z"),
        ["Sun 03-28 01:00 +0100", "Sun 03-28 03:00 +0200", "Sun 03-28 04:00 +0200"]
    );
    assert_eq!(
        slots("*/30 * * * *", berlin(), "2027-10-31T00:00:00Z", "2027-10-31T02:00:00Z"),
        ["Sun 10-31 02:30 +0200", "Sun 10-31 02:00 +0100", "Sun 10-31 02:30 +0100", "Sun 10-31 03:00 +0100"]
    );
    assert_eq!(
        slots("15 * * * *", lord_howe(), "2027-04-03T13:30:00Z", "2027-04-03T16:50:00Z"),
        ["Sun 04-04 01:15 +1100", "Sun 04-04 02:15 +1030", "Sun 04-04 03:15 +1030"]
    );
}

/// A reference implementation, minute by minute: slow, but obviously correct.
fn reference(schedule: &Schedule, tz: Zone, from: DateTime<Utc>, minutes: i64) -> Vec<DateTime<Utc>> {
    use chrono::Timelike;
    let matches = |local: NaiveDateTime| {
        schedule.has_day(local.date())
            && schedule.hours >> local.hour() & 1 == 1
            && schedule.minutes >> local.minute() & 1 == 1
    };
    let local = |at: DateTime<Utc>| at.with_timezone(&tz).naive_local();
    let real_time = schedule.hours == EVERY_HOUR;
    let mut latest = local(from - TimeDelta::minutes(1));
    let mut fired = vec![];
    for minute in 0..minutes {
        let at = from + TimeDelta::minutes(minute);
        let now = local(at);
        let new = if real_time {
            matches(now)
        } else {
            // All local minutes since the latest one so far: none while the clock repeats itself, many after it jumped.
            let count = (now - latest).num_minutes().max(0);
            (0..count).any(|i| matches(now - TimeDelta::minutes(i)))
        };
        latest = latest.max(now);
        if new {
            fired.push(at);
        }
    }
    fired
}

#[test]
fn slots_agree_with_reference_around_clock_changes() {
    let zones: [(Zone, &[&str]); 7] = [
        (berlin(), &["2027-03-27T00:00:00Z", "2027-10-30T00:00:00Z"]),
        (new_york(), &["2027-03-13T00:00:00Z", "2027-11-06T00:00:00Z"]),
        (lord_howe(), &["2027-04-02T12:00:00Z", "2027-10-01T12:00:00Z"]),
        // The change is at midnight: the day begins at 01:00, or 23:00 comes twice.
        ("America/Sao_Paulo".parse().unwrap(), &["2018-11-03T00:00:00Z", "2018-02-17T00:00:00Z"]),
        // The change is at 00:01.
        ("America/St_Johns".parse().unwrap(), &["2010-03-13T00:00:00Z", "2010-11-06T00:00:00Z"]),
        ("Pacific/Apia".parse().unwrap(), &["2011-12-29T06:00:00Z"]),
        (Zone::UTC, &["2027-03-26T00:00:00Z"]),
    ];
    let texts = [
        "*/30 * * * *",
        "15 * * * *",
        "0 */2 * * *",
        "30 2 * * *",
        "0,30 1,2 * * *",
        "15 0 * * *",
        "45 23 * * *",
        "*/7 0,23 * * *",
        "0 0 * * sun",
        "10 2 28-31 * *",
        "59 1 * 3,10 mon,sun",
    ];
    let span = 3 * 24 * 60;
    for (tz, starts) in zones {
        for (start, text) in starts.iter().flat_map(|s| texts.map(|t| (utc(s), t))) {
            let schedule = schedule(text);
            let expected = reference(&schedule, tz, start, span);
            let end = start + TimeDelta::minutes(span - 1);
            let mut at = start - TimeDelta::seconds(1);
            let mut found = vec![];
            while let Some(slot) = schedule.next_slot(tz, at).filter(|s| *s <= end) {
                found.push(slot);
                at = slot;
            }
            assert_eq!(found, expected, "{text} in {tz} from {start}");
            for at in (0..span).step_by(61).map(|m| start + TimeDelta::seconds(m * 60 + 31)) {
                let seen = expected.partition_point(|s| *s <= at);
                let last = schedule.last_slot(tz, at).filter(|s| *s >= start);
                assert_eq!(last, seen.checked_sub(1).map(|i| expected[i]), "{text} in {tz} at {at}");
                if let Some(next) = expected.get(seen) {
                    assert_eq!(schedule.next_slot(tz, at), Some(*next), "{text} in {tz} after {at}");
                }
            }
        }
    }
}

#[test]
fn rare_slots_are_found_from_any_moment() {
    let leap = schedule("0 0 29 2 *");
    assert_eq!(leap.last_slot(berlin(), utc("2104-02-01T00:00:00Z")), Some(utc("2096-02-28T23:00:00Z")));
    assert_eq!(leap.next_slot(berlin(), utc("2096-03-01T00:00:00Z")), Some(utc("2104-02-28T23:00:00Z")));
    let yearly = schedule("@yearly");
    assert_eq!(yearly.last_slot(berlin(), utc("2026-12-31T22:59:59Z")), Some(utc("2025-12-31T23:00:00Z")));
    assert_eq!(yearly.last_slot(berlin(), utc("2026-12-31T23:00:00Z")), Some(utc("2026-12-31T23:00:00Z")));
    for extreme in [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC] {
        let _ = (yearly.last_slot(berlin(), extreme), yearly.next_slot(berlin(), extreme));
    }
}

#[test]
fn longest_gap_is_that_between_any_two_slots() {
    let hours = |text: &str| schedule(text).longest_gap().as_secs_f64() / 3600.0;
    assert_eq!(hours("*/15 * * * *"), 0.25);
    assert_eq!(hours("0,10 * * * *"), 50.0 / 60.0);
    assert_eq!(hours("@daily"), 24.0);
    // Over a weekend.
    assert_eq!(hours("0 8-18 * * 1-5"), 62.0);
    assert_eq!(hours("@monthly"), 31.0 * 24.0);
    assert_eq!(hours("0 0 29 2 *"), 1461.0 * 24.0);
}
