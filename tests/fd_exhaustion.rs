//! A server that runs out of file descriptors serves new connections when descriptors are free again.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use testkit::{TEST_TIMEOUT, example_process::ExampleProcess};

const MAX_FDS: usize = 40;

/// Sends a request on a new connection, and returns the response. Returns `None` if the connection is cut off.
fn get_root(address: &str) -> Option<String> {
    let mut socket = TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let request = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).ok()?;
    let mut response = String::new();
    socket.read_to_string(&mut response).ok()?;
    Some(response)
}

/// Uses up the file descriptors of an example, frees them, and asserts that the example still answers.
fn assert_accept_loop_recovers(name: &str) {
    let example = ExampleProcess::start_with_fd_limit(MAX_FDS, name);
    let address = example.next_address();
    let address = address.strip_prefix("http://").unwrap();
    assert!(get_root(address).unwrap().starts_with("HTTP/1.1 200 OK"));
    let connect = || TcpStream::connect(address).unwrap();
    // These are more connections than the server has descriptors for, so the last ones wait and cannot be accepted.
    let connections: Vec<_> = (0..2 * MAX_FDS).map(|_| connect()).collect();
    let start = Instant::now();
    while example.open_fd_count() < MAX_FDS && start.elapsed() < TEST_TIMEOUT {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(example.open_fd_count() >= MAX_FDS, "{name}");
    drop(connections);
    let response = get_root(address).unwrap_or_else(|| panic!("{name} has exited"));
    assert!(
        response.starts_with("HTTP/1.1 200 OK"),
        "{name}: {response}"
    );
}

#[test]
fn accept_loops_recover_from_fd_exhaustion() {
    for name in ["hyper", "warp"] {
        assert_accept_loop_recovers(name);
    }
}
