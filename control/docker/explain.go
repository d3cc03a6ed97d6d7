// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"

	"github.com/docker/docker/api"
	"github.com/docker/docker/client"
)

// lostError: the Engine was there and is gone.
type lostError struct{ err error }

func (e *lostError) Error() string { return fmt.Sprintf("connection lost: %v", e.err) }
func (e *lostError) Unwrap() error { return e.err }

// lost says why the stream of events has ended.
func lost(err error) error {
	var op net.Error
	if client.IsErrConnectionFailed(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op) {
		return &lostError{err}
	}
	return fmt.Errorf("follow events: %w", err)
}

// oldError: the Engine's API is older than MinAPI.
type oldError struct{ version string }

func (e *oldError) Error() string {
	if e.version == "" {
		return "names no version of its API"
	}
	return "speaks API " + e.version
}

// explain says why there is no connection, and what to do.
func (s *Source) explain(err error) string {
	s.mu.Lock()
	dial := s.dialError
	s.mu.Unlock()
	where := "docker at " + s.host
	if path, ok := strings.CutPrefix(s.host, "unix://"); ok {
		where = "docker socket " + path
	}
	if client.IsErrConnectionFailed(err) && dial != nil {
		return where + ": " + explainDial(dial)
	}
	return where + ": " + explainAnswer(err)
}

// explainDial is about an Engine that could not be reached.
func explainDial(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "no such file or directory: is dockerd running? start it, or name its socket by DOCKER_HOST"
	case errors.Is(err, fs.ErrPermission):
		return "permission denied: run conenat as root, or as a member of the socket's group"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused: is dockerd running? start it, or name its address by DOCKER_HOST"
	}
	return fmt.Sprintf("%v: is dockerd running? start it, or name its address by DOCKER_HOST", err)
}

// explainAnswer is about an Engine that was reached.
func explainAnswer(err error) string {
	var lost *lostError
	var old *oldError
	var record tls.RecordHeaderError
	var certificate *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &old):
		return fmt.Sprintf("dockerd %v, and conenat needs API %s (Docker 19.03) or newer: update Docker", old, MinAPI)
	case errors.As(err, &lost):
		return "connection lost: dockerd has ended or starts again; its containers stay as they were last seen"
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time: dockerd hangs: see its log"
	case strings.Contains(err.Error(), "is too old. Minimum supported API version"):
		return fmt.Sprintf("dockerd no longer speaks API %s, the newest that this conenat knows: update conenat (%v)", api.DefaultVersion, err)
	case errors.As(err, &record), errors.As(err, &certificate), errors.As(err, &unknown), strings.Contains(err.Error(), "tls"),
		strings.Contains(err.Error(), "TLS"), strings.Contains(err.Error(), "HTTP request to an HTTPS server"):
		return fmt.Sprintf("TLS: %v: see DOCKER_TLS_VERIFY and DOCKER_CERT_PATH", err)
	}
	return fmt.Sprintf("%v: see dockerd's log", err)
}
