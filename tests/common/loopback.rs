//! Runs agents and slaves in this process, on loopback.

use std::sync::{Arc, Mutex};

use zsync::server::acceptor::{Acceptor, Role};
use zsync::sys::runtime;
use zsync::transport::tcp::Listener;
use zsync::transport::tls::Tls;

/// A role that serves until the process ends.
pub struct Server {
    pub address: String,
    conversations: Arc<Mutex<runtime::Tasks>>,
}

impl Server {
    /// Serves on a port of its own.
    pub fn start<R: Role>(acceptor: Acceptor<R>) -> Self {
        let acceptor = Arc::new(acceptor);
        let conversations = Arc::<Mutex<runtime::Tasks>>::default();
        let tasks = Arc::clone(&conversations);
        let address = runtime::block_on(async move {
            let listener = Listener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.address().unwrap().to_string();
            runtime::spawn(async move {
                while let Ok(incoming) = listener.accept().await {
                    acceptor.admit(incoming, &tasks.lock().unwrap());
                }
            });
            address
        });
        Self { address, conversations }
    }

    /// Aborts all conversations, as if the process were killed. New connections are still accepted.
    pub fn kill(&self) {
        let mut killed = std::mem::take(&mut *self.conversations.lock().unwrap());
        runtime::block_on(killed.interrupt());
    }
}

/// Serves until the process ends; returns the address.
pub fn listen<R: Role>(role: R, tls: Option<Arc<Tls>>) -> String {
    Server::start(Acceptor::new(Arc::new(role), tls)).address
}
