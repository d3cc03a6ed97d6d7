// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os/exec"
	"strings"
	"testing"
)

// image makes a bzImage of a payload: two sectors of real-mode code after the first, and the payload 100 bytes into
// the rest.
func image(payload []byte) []byte {
	const setup, offset = 2, 100
	b := make([]byte, (setup+1)*sectorLength+offset)
	b[offSetupSects] = setup
	copy(b[offMagic:], "HdrS")
	binary.LittleEndian.PutUint16(b[offVersion:], 0x20f)
	binary.LittleEndian.PutUint32(b[offPayload:], offset)
	binary.LittleEndian.PutUint32(b[offPayloadLength:], uint32(len(payload)))
	return append(append(b, payload...), "what follows the payload"...)
}

func withLength(compressed []byte, n int) []byte {
	return binary.LittleEndian.AppendUint32(compressed, uint32(n))
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func piped(t *testing.T, data []byte, command string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(command, args...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: `.ci/install-packages vm` installs it", command, err)
	}
	return out
}

var vmlinux = []byte("\x7fELF" + strings.Repeat("a kernel ", 1000))

func TestExtract(t *testing.T) {
	for name, payload := range map[string][]byte{
		"gzip": gzipped(t, vmlinux), // ends with the length by its own definition
		"xz":   withLength(piped(t, vmlinux, "xz", "-c", "--check=crc32"), len(vmlinux)),
		"zstd": withLength(piped(t, vmlinux, "zstd", "-cq"), len(vmlinux)),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := extract(t.Context(), image(payload))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, vmlinux) {
				t.Errorf("got %d bytes that are not the %d put in", len(got), len(vmlinux))
			}
		})
	}
}

func TestExtractRefuses(t *testing.T) {
	good := image(gzipped(t, vmlinux))
	changed := func(at int, to ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], to)
		return b
	}
	for name, test := range map[string]struct {
		image []byte
		want  string
	}{
		"empty":          {nil, "boot header is missing"},
		"no_magic":       {changed(offMagic, 'x'), "boot header is missing"},
		"old_protocol":   {changed(offVersion, 0x07, 0x02), "boot protocol 0x207"},
		"beyond_the_end": {changed(offPayloadLength, 0xff, 0xff, 0xff, 0x7f), "not within the image"},
		"empty_payload":  {changed(offPayloadLength, 0, 0, 0, 0), "not within the image"},
		"no_compression": {image([]byte("nothing known, 5")), "unknown compression"},
		"other_length":   {image(withLength(piped(t, vmlinux, "xz", "-c"), 5)), "the image says 5"},
		"no_elf":         {image(gzipped(t, []byte("text"))), "no ELF"},
		"broken":         {image(withLength([]byte("\xfd7zXZ\x00broken"), 5)), "run xz"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := extract(t.Context(), test.image)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}
