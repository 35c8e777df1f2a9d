// SPDX-License-Identifier: MIT

package vm

import "context"

// hypervisorFiles finds nothing: see EndLeftovers.
func hypervisorFiles(context.Context, int) (map[int][]string, error) { return nil, nil }
