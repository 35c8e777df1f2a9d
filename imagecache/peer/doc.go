// SPDX-License-Identifier: MIT

// Package peer lets the hosts of one site take chunks of images from each other, so that
// an image crosses the site's uplink once. A host that gives them out checks a short-lived
// token of the controller's without asking it; one that takes them believes nothing but
// their digests.
//
// Hosts that pull the same image at the same time share the work without a leader: for each
// chunk all of them rank each other in the same order, by a hash of chunk and host. Who
// needs a chunk asks those before it in that order, and who is asked for a chunk of an image
// that it is pulling itself fetches it at once and keeps it for both. So each chunk is
// fetched from the bucket by the first of its order, and every host fetches an equal share. One
// that began earlier, or is done, gives what it has; one that is gone or slow is passed over.
package peer
