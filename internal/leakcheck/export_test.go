// SPDX-License-Identifier: MIT

package leakcheck

import "time"

// Hasten has what is never gone be waited for for less long.
func Hasten() { patience = 5 * time.Second }
