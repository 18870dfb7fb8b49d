//! The command line: commands, options, and which applications a command is about.
