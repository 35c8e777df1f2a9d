// SPDX-License-Identifier: MIT

//go:build tools

package imagecache_test

import _ "github.com/fsouza/fake-gcs-server/fakestorage"
