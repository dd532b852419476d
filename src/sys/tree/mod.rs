//! Reads trees of files that others control, and copies files out of them. No symbolic link is ever followed, and no
//! other file system is entered: every file and folder is opened by its name in a folder that is open already.

mod attributes;
mod copy;
mod read;
mod sink;
mod walk;

pub use copy::{Copied, Copier};
pub use read::{leave_folder, read_entry};
pub use sink::{Attributes, Item, Kind, LARGEST_PART, LONGEST_ATTRIBUTE, Sink};
pub use walk::{Entry, Folder, Visit, walk};

#[cfg(test)]
mod tests;
