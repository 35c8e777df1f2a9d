// SPDX-License-Identifier: MIT

package objects_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkConnections is why the store speaks HTTP/1.1: chunks fetched side by side over
// TLS, with one connection for each request and with one for all. The server takes part of
// the CPUs; the ratio is what counts.
func BenchmarkConnections(b *testing.B) {
	const size, parallel = 4 << 20, 8
	body := noise(size)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.Write(body)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	for _, buffer := range []int{4 << 10, 128 << 10} {
		for name, set := range map[string]func(*http.Protocols){
			"HTTP1": func(p *http.Protocols) { p.SetHTTP1(true) },
			"HTTP2": func(p *http.Protocols) { p.SetHTTP2(true) },
		} {
			b.Run(fmt.Sprintf("%s/buffer=%d", name, buffer), func(b *testing.B) {
				one := &http.Protocols{}
				set(one)
				transport := &http.Transport{
					TLSClientConfig: &tls.Config{RootCAs: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com"},
					Protocols:       one, MaxIdleConnsPerHost: parallel, ReadBufferSize: buffer, WriteBufferSize: buffer,
				}
				defer transport.CloseIdleConnections()
				client := &http.Client{Transport: transport}
				b.SetBytes(size)
				var wg sync.WaitGroup
				work := make(chan struct{})
				for range parallel {
					wg.Go(func() {
						for range work {
							resp, err := client.Get(server.URL)
							if err != nil {
								b.Error(err)
								continue
							}
							if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
								b.Error(n, err)
							}
							resp.Body.Close()
						}
					})
				}
				before := cpu(b)
				for b.Loop() {
					work <- struct{}{}
				}
				close(work)
				wg.Wait()
				b.ReportMetric(float64(cpu(b)-before)/float64(b.N)/(size>>20), "cpu-ns/MiB")
			})
		}
	}
}

// cpu is what this process has used: unlike time, it does not depend on what else runs.
func cpu(b *testing.B) int64 {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return used.Utime.Nano() + used.Stime.Nano()
}

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * i >> 3)
	}
	return b
}
