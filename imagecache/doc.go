// SPDX-License-Identifier: MIT

// Package imagecache holds the images from which machines are cloned: it finds an image
// by its reference, checks it, names it by the digest of its content, and pins it while
// it is in use. For now an image gets into the cache by being put into its folder; the
// callers' side, Ensure and List, is that of a cache which also fetches. It knows nothing
// of machines, of jobs or of the controller.
package imagecache
