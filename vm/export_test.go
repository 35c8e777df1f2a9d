// SPDX-License-Identifier: MIT

package vm

// VMM returns the identity of the machine's vmm.
func (m *Machine) VMM() ProcessID { return m.vmm }

// Kill ends exactly this process.
func (p ProcessID) Kill() error { return p.kill() }

// ParseIdentity reads vmm.json or writer.json.
func ParseIdentity(b []byte) (ProcessID, error) { return parseIdentity("test", b) }

// Command is the command line that starts a vmm for this account on a system.
func (a Account) Command(system string, vmm []string) []string { return a.command(system, vmm) }
