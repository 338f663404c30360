//! A server that has no file descriptor left goes on when there is one again.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use testkit::{TEST_TIMEOUT, example_process::ExampleProcess};

const FILES: usize = 40;

/// What a new connection is answered; `None` if it is cut.
fn ask(address: &str) -> Option<String> {
    let mut socket = TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let request = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).ok()?;
    let mut read = String::new();
    socket.read_to_string(&mut read).ok()?;
    Some(read)
}

fn goes_on(name: &str) {
    let example = ExampleProcess::start_with_fd_limit(FILES, name);
    let address = example.next_address();
    let address = address.strip_prefix("http://").unwrap();
    assert!(ask(address).unwrap().starts_with("HTTP/1.1 200 OK"));
    let open = || TcpStream::connect(address).unwrap();
    // More than it can have, so that the next one is waiting, and cannot be accepted.
    let crowd: Vec<_> = (0..2 * FILES).map(|_| open()).collect();
    let begun = Instant::now();
    while example.open_fd_count() < FILES && begun.elapsed() < TEST_TIMEOUT {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(example.open_fd_count() >= FILES, "{name}");
    drop(crowd);
    let answer = ask(address).unwrap_or_else(|| panic!("{name} has ended"));
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{name}: {answer}");
}

#[test]
fn the_accept_loops_of_the_examples_go_on() {
    for name in ["hyper", "warp"] {
        goes_on(name);
    }
}
