// SPDX-License-Identifier: MIT

// Package publish is what is done to the images of a bucket: push, list, tag, delete,
// compare, verify, and the collection of chunks that no manifest names. Everything it
// does can be cut off at any moment, and beside any other of itself.
package publish
