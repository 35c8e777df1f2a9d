// SPDX-License-Identifier: MIT

package vm

// VMM returns the identity of the machine's vmm.
func (m *Machine) VMM() ProcessID { return m.vmm }

// Kill ends exactly this process.
func (p ProcessID) Kill() error { return p.kill() }

// ParseIdentity reads vmm.json or writer.json.
func ParseIdentity(b []byte) (ProcessID, error) { return parseIdentity("test", b) }
