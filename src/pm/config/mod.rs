//! What an application is: plain values, out of a file or the command line.
