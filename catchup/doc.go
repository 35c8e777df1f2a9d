// SPDX-License-Identifier: MIT

// Package catchup reads GitHub's list of the App's webhook deliveries, and takes from
// there what did not come: deliveries of which every attempt failed or, where nothing can
// be delivered to, all of them. What it takes enters as pushed deliveries do. It judges no
// delivery, and leaves what GitHub never sent to package reconcile.
package catchup
