// SPDX-License-Identifier: MIT

// Command guest is the one program of the guest in the tests of package qemu: its first
// process. It loads every module that the kernel's own initial file system brings, and
// serves HTTP at the machine's port.
package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/mux"
)

func main() {
	for _, dir := range []string{"dev", "proc", "sys", "tmp"} {
		_ = os.MkdirAll("/"+dir, 0o755)
	}
	_ = unix.Mount("dev", "/dev", "devtmpfs", 0, "")
	_ = unix.Mount("proc", "/proc", "proc", 0, "")
	_ = unix.Mount("sys", "/sys", "sysfs", 0, "")
	loadModules()
	fmt.Println("test guest starts")
	http.HandleFunc("GET /v1/health", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") })
	var count atomic.Int64
	http.HandleFunc("POST /count", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, count.Add(1)) })
	http.HandleFunc("POST /off", func(http.ResponseWriter, *http.Request) { _ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) })
	http.HandleFunc("POST /restart", func(http.ResponseWriter, *http.Request) { _ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) })
	http.HandleFunc("POST /panic", func(http.ResponseWriter, *http.Request) { os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0) })
	http.HandleFunc("POST /print", func(_ http.ResponseWriter, r *http.Request) { io.Copy(os.Stdout, r.Body) })
	http.HandleFunc("POST /sh", shell)
	http.HandleFunc("POST /reach", reach)
	http.HandleFunc("POST /listen", listen)
	for every := time.NewTicker(50 * time.Millisecond); ; <-every.C {
		serve()
	}
}

// loadModules loads what can be loaded, until nothing more can: their order is their own.
func loadModules() {
	var modules []string
	filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "/proc" || path == "/sys" || path == "/dev" {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, ".ko") {
			modules = append(modules, path)
		}
		return nil
	})
	for more := true; more; {
		more = false
		var rest []string
		for _, m := range modules {
			f, err := os.Open(m)
			if err == nil {
				err = unix.FinitModule(int(f.Fd()), "", 0)
				f.Close()
			}
			if err != nil {
				rest = append(rest, m)
			} else {
				more = true
			}
		}
		modules = rest
	}
}

// channel is the port as a connection.
type channel struct{ *os.File }

func (channel) LocalAddr() net.Addr  { return &net.UnixAddr{} }
func (channel) RemoteAddr() net.Addr { return &net.UnixAddr{} }

func serve() {
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(b)) != "minifleet.guest" {
			continue
		}
		f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_RDWR, 0)
		if err != nil {
			continue
		}
		l, err := mux.Serve(channel{f})
		if err == nil {
			err = http.Serve(l, nil)
			l.Close()
		}
		f.Close()
	}
}

const lease = `#!/bin/busybox sh
B=/bin/busybox
case $1 in bound|renew)
  $B ifconfig $interface $ip netmask $subnet
  [ -z "$router" ] || $B route add default gw $router
  echo "ip=$ip router=$router dns=$dns";; esac
`

// shell runs the body in a shell; /lease.sh takes a DHCP lease.
func shell(w http.ResponseWriter, r *http.Request) {
	script, _ := io.ReadAll(r.Body)
	_ = os.WriteFile("/lease.sh", []byte(lease), 0o755)
	ctx, cancel := context.WithTimeout(r.Context(), 40*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/busybox", "sh", "-c", string(script))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.CombinedOutput()
	w.Write(out)
	if err != nil {
		fmt.Fprintf(w, "\nerror: %v", err)
	}
}

// reach says how a connection to ?to= goes; the body is sent and the answer returned.
func reach(w http.ResponseWriter, r *http.Request) {
	d := net.Dialer{Timeout: 2 * time.Second}
	c, err := d.DialContext(r.Context(), "tcp", r.URL.Query().Get("to"))
	if err != nil {
		fmt.Fprintf(w, "no: %v", err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	io.Copy(c, r.Body)
	_ = c.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(io.LimitReader(c, 1<<20))
	fmt.Fprintf(w, "yes: %s", b)
	if err != nil {
		fmt.Fprintf(w, " then %v", err)
	}
}

// listen greets everyone who connects to ?port=.
func listen(w http.ResponseWriter, r *http.Request) {
	l, err := net.Listen("tcp4", ":"+r.URL.Query().Get("port"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello from the guest\n")
			io.Copy(io.Discard, c) // as a server of SSH waits for its client
			c.Close()
		}
	}()
}
