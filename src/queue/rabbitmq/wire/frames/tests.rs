use super::*;

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[kind, 0, 1][..], &size, payload, &[0xce]].concat()
}

fn text(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()][..], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn headers(table: &[u8]) -> Vec<u8> {
    let start = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6][..], &(1_u16 << 13 | 1 << 7).to_be_bytes()].concat();
    frame(HEADER, &[start, long(table), text(b"id")].concat())
}

/// Output for input in chunks of several sizes, on which it must not depend.
fn sanitized_within(frame_max: u32, bytes: &[u8]) -> Vec<u8> {
    let outs = [1, 7, 8, 4096, usize::MAX].map(|size| super::super::sanitized(frame_max, bytes.chunks(size)));
    assert!(outs.iter().all(|out| *out == outs[0]));
    outs[0].clone()
}

fn sanitized(bytes: &[u8]) -> Vec<u8> {
    sanitized_within(131_072, bytes)
}

#[test]
fn readable_frames_pass_unchanged() {
    let table =
        [text(b"a"), b"S".to_vec(), long(b"\xff\xfe"), text(b"n"), b"A".to_vec(), long(b"I\0\0\0\x01V")].concat();
    let body = frame(BODY, b"\xff\xfe body");
    let all = [headers(&table), body, frame(HEARTBEAT, b""), frame(METHOD, &[0, 60, 0, 80, 1, 2, 3])].concat();
    assert_eq!(sanitized(&all), all);
}

#[test]
fn texts_that_are_not_utf_8_are_made_readable_everywhere() {
    let table =
        [text(b"\xff"), b"V".to_vec(), text(b"t"), b"F".to_vec(), long(&[text(b"\xfe"), b"V".to_vec()].concat())];
    let came = sanitized(&headers(&table.concat()));
    let table = [text(b"?"), b"V".to_vec(), text(b"t"), b"F".to_vec(), long(&[text(b"?"), b"V".to_vec()].concat())];
    assert_eq!(came, headers(&table.concat()));
    let delivery = |key: &[u8]| {
        let parts = [vec![0, 60, 0, 60], text(b"tag"), vec![0; 9], text(b"ex"), text(key)];
        frame(METHOD, &parts.concat())
    };
    assert_eq!(sanitized(&delivery(b"job.scheduled.\xff")), delivery(b"job.scheduled.?"));
    let closed = |why: &[u8]| frame(METHOD, &[vec![0, 20, 0, 40, 1, 148], text(why), vec![0; 4]].concat());
    assert_eq!(sanitized(&closed(b"no queue \xff")), closed(b"no queue ?"));
}

#[test]
fn values_nested_too_deeply_become_bytes_of_the_same_length() {
    for kind in [b"A", b"F"] {
        let nested = |levels: usize, last: &[u8]| {
            let name: &[u8] = if kind == b"F" { &[0] } else { &[] };
            let wrap = |value: Vec<u8>| [&kind[..], &long(&[name, &value].concat())].concat();
            let value = (0..levels).fold(last.to_vec(), |value, _| wrap(value));
            headers(&[text(b"d"), value].concat())
        };
        assert_eq!(sanitized(&nested(15, b"V")), nested(15, b"V"));
        let deep = sanitized(&nested(5_000, b"V"));
        assert_eq!(deep.len(), nested(5_000, b"V").len());
        let differ: Vec<_> = deep.iter().zip(nested(5_000, b"V")).filter(|(is, was)| **is != *was).collect();
        assert_eq!(differ, [(&b'x', kind[0])], "only the type of one value differs");
    }
}

#[test]
fn headers_beyond_a_frame_are_removed_the_largest_first_and_listed() {
    let entry = |name: &[u8], size: usize| [text(name), b"S".to_vec(), long(&vec![b'v'; size])].concat();
    let all = [entry(b"small", 9), entry(b"large", 3000), entry(b"larger", 4000), entry(b"last", 10)].concat();
    let named = |names: &[u8]| [text(b"x-headers-left-out"), b"S".to_vec(), long(names)].concat();
    let expected = [entry(b"small", 9), entry(b"large", 3000), entry(b"last", 10), named(b"larger")].concat();
    assert_eq!(sanitized_within(4096, &headers(&all)), headers(&expected));
    let expected = [entry(b"small", 9), entry(b"last", 10), named(b"larger, large")].concat();
    assert_eq!(sanitized_within(1024, &headers(&all)), headers(&expected));
    assert_eq!(sanitized_within(0, &headers(&all)), headers(&all), "there is no limit");
    let tune = frame(METHOD, &[0, 10, 0, 30, 0, 0, 0, 0, 4, 0, 0, 60]);
    let after = sanitized_within(4096, &[tune.clone(), headers(&all)].concat());
    assert_eq!(after, [tune, headers(&expected)].concat(), "the limit of the broker is lower");
}

fn content(body_size: u64, cluster_id: Option<&[u8]>) -> Vec<u8> {
    let flags = 1_u16 << 13 | 1 << 7 | u16::from(cluster_id.is_some()) << 2;
    let start = [&[0, 60, 0, 0][..], &body_size.to_be_bytes(), &flags.to_be_bytes(), &long(b""), &text(b"id")];
    frame(HEADER, &[start.concat(), cluster_id.map(text).unwrap_or_default()].concat())
}

#[test]
fn a_body_beyond_the_bound_is_dropped_and_its_message_is_marked() {
    let on = |channel: u8, mut frame: Vec<u8>| {
        frame[2] = channel;
        frame
    };
    let part = |size: usize| frame(BODY, &vec![7; size]);
    let (large, small) = (MAX_BODY + 1, MAX_BODY);
    let halves = [usize::try_from(large).unwrap() - 9, 9];
    let came = [
        on(1, content(large, None)),
        on(1, part(halves[0])),
        // Frames of other channels come in between.
        on(2, content(3, Some(b"mine"))),
        on(2, part(3)),
        frame(HEARTBEAT, b""),
        on(1, part(halves[1])),
        on(1, content(small, None)),
        on(1, part(9)),
    ];
    let expected = [
        on(1, content(0, Some(format!("consign-unread:{large}").as_bytes()))),
        on(2, content(3, Some(b"mine"))),
        on(2, part(3)),
        frame(HEARTBEAT, b""),
        on(1, content(small, None)),
        on(1, part(9)),
    ];
    assert_eq!(sanitized(&came.concat()), expected.concat());
    let (own, marked) = (content(large, Some(b"own")), content(0, Some(b"consign-unread:2097153")));
    assert_eq!(sanitized(&own), marked, "it takes the place of another one");
    let closed = frame(METHOD, &[0, 20, 0, 40, 1, 148, 0, 0, 0, 0, 0]);
    let after = [content(3, None), part(3)].concat();
    let came = sanitized(&[content(large, None), part(5), closed.clone(), after.clone()].concat());
    assert_eq!(came, [content(0, Some(b"consign-unread:2097153")), closed, after].concat(), "the channel was closed");
}

#[test]
fn a_mark_from_outside_does_not_pass() {
    let forged = content(2, Some(b"consign-unread:9"));
    assert_eq!(sanitized(&forged), content(2, Some(b"?onsign-unread:9")));
}

#[test]
fn other_protocols_pass_unchanged() {
    for bytes in [&b"AMQP\0\0\x09\x01"[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x01\0\0\xff\xff\xff\xff more"] {
        assert_eq!(sanitized(bytes), bytes);
    }
}
