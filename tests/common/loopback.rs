//! Agents and slaves in this process, on loopback.

use std::sync::Arc;

use zsync::server::acceptor::{Acceptor, Role};
use zsync::sys::runtime;
use zsync::transport::tcp::Listener;
use zsync::transport::tls::Tls;

/// Serves until the process ends; gives the address.
pub fn listen<R: Role>(role: R, tls: Option<Arc<Tls>>) -> String {
    let door = Arc::new(Acceptor::new(Arc::new(role), tls));
    runtime::block_on(async {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.address().unwrap().to_string();
        runtime::spawn(async move {
            let tasks = runtime::Tasks::default();
            while let Ok(incoming) = listener.accept().await {
                door.admit(incoming, &tasks);
            }
        });
        address
    })
}
