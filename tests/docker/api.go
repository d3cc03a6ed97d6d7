// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

var errNoSuch = errors.New("no such object")

// api is the few calls of Docker's HTTP API that the harness needs.
type api struct {
	socket string
	http   *http.Client
}

func newAPI(socket string) *api {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &api{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

func (a *api) close() error {
	a.http.CloseIdleConnections()
	return nil
}

func (a *api) ping(ctx context.Context) error {
	return a.call(ctx, "GET", "/_ping", nil, nil)
}

// call sends body as JSON, or as a tar archive if it is an io.Reader, and decodes the answer into result.
func (a *api) call(ctx context.Context, method, path string, body, result any) error {
	content, contentType, err := encode(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, content)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", contentType)
	response, err := a.http.Do(request)
	if err != nil {
		return fmt.Errorf("docker API: %w", err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
	case response.StatusCode == http.StatusNotFound:
		err = fmt.Errorf("%w: %s", errNoSuch, bytes.TrimSpace(answer))
	case response.StatusCode >= 300 && response.StatusCode != http.StatusNotModified:
		err = fmt.Errorf("%s: %s", response.Status, bytes.TrimSpace(answer))
	case result != nil:
		err = json.Unmarshal(answer, result)
	}
	if err != nil {
		return fmt.Errorf("docker API: %s %s: %w", method, path, err)
	}
	return nil
}

func encode(body any) (io.Reader, string, error) {
	switch b := body.(type) {
	case nil:
		return nil, "text/plain", nil
	case io.Reader:
		return b, "application/x-tar", nil
	}
	content, err := json.Marshal(body)
	return bytes.NewReader(content), "application/json", err
}

// attach opens the standard input and output of a container that was made without a terminal.
func (a *api) attach(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", a.socket)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(conn, "POST /containers/%s/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\n"+
		"Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n", id)
	if err != nil {
		conn.Close()
		return nil, err
	}
	in := bufio.NewReader(conn)
	response, err := http.ReadResponse(in, nil)
	if err == nil && response.StatusCode != http.StatusSwitchingProtocols {
		err = fmt.Errorf("attach to container %s: %s", id, response.Status)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &attached{Conn: conn, in: in, stderr: &strings.Builder{}}, nil
}

// attached takes Docker's frames off the stream: a stream number (1 is standard output), three zeros, and a
// length in 32 bits.
type attached struct {
	net.Conn
	in     *bufio.Reader
	left   int
	stderr *strings.Builder // what did not belong to the protocol, for a debugger
}

func (a *attached) Read(b []byte) (int, error) {
	for a.left == 0 {
		if err := a.frame(); err != nil {
			return 0, err
		}
	}
	n, err := a.in.Read(b[:min(len(b), a.left)])
	a.left -= n
	return n, err
}

// frame reads the next header, and the whole frame if it is of standard error.
func (a *attached) frame() error {
	var header [8]byte
	if _, err := io.ReadFull(a.in, header[:]); err != nil {
		return err
	}
	length := int(header[4])<<24 | int(header[5])<<16 | int(header[6])<<8 | int(header[7])
	if header[0] == 1 {
		a.left = length
		return nil
	}
	_, err := io.CopyN(a.stderr, a.in, int64(length))
	return err
}
