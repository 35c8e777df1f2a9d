// SPDX-License-Identifier: MIT

// Package peer lets the hosts of one site take chunks of images from each other, so that
// an image crosses the site's uplink once. A host that gives them out checks a short-lived
// token of the controller's without asking it; one that takes them believes nothing but
// their digests.
package peer
