// SPDX-License-Identifier: MIT

package vm_test

import (
	"bytes"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/minifleet/minifleet/vm"
)

// short checks that an error is fit for a status or a log: a guest without isolation
// can write into its bundle.
func short(t *testing.T, err error) {
	t.Helper()
	if err != nil && (len(err.Error()) > 2<<10 || !utf8.ValidString(err.Error())) {
		t.Fatalf("error of %d bytes: %.200q", len(err.Error()), err)
	}
}

// FuzzParseSpec holds a spec.json to what the rest relies on, and to coming back as it was.
func FuzzParseSpec(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		spec, err := vm.ParseSpec(b)
		short(t, err)
		if err != nil {
			if !reflect.DeepEqual(spec, vm.Spec{}) {
				t.Fatalf("refused, and yet %+v", spec)
			}
			return
		}
		if strings.ContainsAny(spec.ID, "/.\x00") || spec.ID == "" || len(b) > vm.MaxSpecBytes || spec.Validate() != nil {
			t.Fatalf("%+v got through: %v", spec, spec.Validate())
		}
		out, err := spec.Encode()
		if err != nil {
			t.Skip("larger with indentation than is allowed")
		}
		again, err := vm.ParseSpec(out)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, out)
		}
		if out2, err := again.Encode(); err != nil || string(out2) != string(out) {
			t.Fatalf("not stable: %v\n%s\n%s", err, out, out2)
		}
	})
}

// FuzzParseStatus holds the states of a status.jsonl to one life, however it was cut off.
func FuzzParseStatus(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		states, err := vm.ParseStatus(b)
		short(t, err)
		last := int64(0)
		for i, s := range states {
			if s.Revision <= last || s.Phase == vm.PhaseFinal && i != len(states)-1 {
				t.Fatalf("state %d got through: %+v", i, s)
			}
			last = s.Revision
			if len(s.Detail) > vm.MaxStatusDetail+8 || len(s.Reason) > 64 || len(s.ID) > 64 {
				t.Fatalf("state %d is too long: %.200q", i, s.Detail)
			}
		}
		// A line that was cut off is no error and takes nothing away.
		if err != nil || len(b) >= vm.MaxStatusBytes-10 {
			return
		}
		whole := b[:strings.LastIndexByte(string(b), '\n')+1]
		if cut, err := vm.ParseStatus(append(whole[:len(whole):len(whole)], `{"revi`...)); err != nil || !reflect.DeepEqual(cut, states) {
			t.Fatalf("with a line that was cut off: %d states instead of %d, %v", len(cut), len(states), err)
		}
	})
}

// FuzzReadSaveRequest lets no request name a folder that is not one plain absolute path.
func FuzzReadSaveRequest(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := vm.ReadSaveRequest(bytes.NewReader(b))
		short(t, err)
		if err != nil {
			if q != (vm.SaveRequest{}) {
				t.Fatalf("refused, and yet %+v", q)
			}
			return
		}
		if !filepath.IsAbs(q.Dir) || filepath.Clean(q.Dir) != q.Dir || strings.Contains(q.Dir, "\x00") || len(q.Dir) > vm.MaxSavedPath {
			t.Fatalf("%+v got through", q)
		}
	})
}

// FuzzParseIdentity lets nothing become the pid of a kill that is not one process.
func FuzzParseIdentity(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := vm.ParseIdentity(b)
		short(t, err)
		if err == nil && id.PID <= 1 || err != nil && id != (vm.ProcessID{}) {
			t.Fatalf("pid %d got through: %v", id.PID, err)
		}
	})
}
