// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// Offsets into a bzImage: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
const (
	offSetupSects    = 0x1f1 // u8: sectors of real-mode code after the first; 0 means 4
	offMagic         = 0x202 // "HdrS"
	offVersion       = 0x206 // u16: boot protocol
	offPayload       = 0x248 // u32: from the protected-mode code
	offPayloadLength = 0x24c // u32
	headerLength     = 0x250

	protocolWithPayload = 0x0208
	sectorLength        = 512
)

// Compressions of a kernel (scripts/Makefile.lib) and of a module, by their first bytes. The command is run where the standard library
// has no decoder.
var compressions = []struct {
	magic   string
	command []string
}{
	{"\x1f\x8b", nil},
	{"\xfd7zXZ\x00", []string{"xz", "-dc"}},
	{"\x28\xb5\x2f\xfd", []string{"zstd", "-dcq"}},
	{"\x02\x21\x4c\x18", []string{"lz4", "-dcq"}},
}

// Extract writes the uncompressed kernel, an ELF file, of a bzImage. QEMU boots it directly (PVH), without the
// seconds that a guest in software emulation would need to decompress it.
func Extract(ctx context.Context, bzImage, vmlinux string) error {
	image, err := os.ReadFile(bzImage)
	if err != nil {
		return err
	}
	elf, err := extract(ctx, image)
	if err != nil {
		return fmt.Errorf("extract the kernel out of %s: %w", bzImage, err)
	}
	return os.WriteFile(vmlinux, elf, 0o644)
}

func extract(ctx context.Context, image []byte) ([]byte, error) {
	payload, err := payloadOf(image)
	if err != nil {
		return nil, err
	}
	// The payload ends with its uncompressed length (gzip's own trailer is just that): xz and zstd would
	// take it for garbage.
	size := binary.LittleEndian.Uint32(payload[len(payload)-4:])
	if !bytes.HasPrefix(payload, []byte(compressions[0].magic)) {
		payload = payload[:len(payload)-4]
	}
	elf, err := decompress(ctx, payload)
	switch {
	case err != nil:
		return nil, err
	case len(elf) != int(size):
		return nil, fmt.Errorf("decompressed to %d bytes, and the image says %d", len(elf), size)
	case !bytes.HasPrefix(elf, []byte("\x7fELF")):
		return nil, errors.New("the payload is no ELF file")
	}
	return elf, nil
}

func payloadOf(image []byte) ([]byte, error) {
	if len(image) < headerLength || string(image[offMagic:offMagic+4]) != "HdrS" {
		return nil, errors.New("no bzImage: the boot header is missing")
	}
	if v := binary.LittleEndian.Uint16(image[offVersion:]); v < protocolWithPayload {
		return nil, fmt.Errorf("boot protocol %#x says nothing of the payload; %#x or later does", v, protocolWithPayload)
	}
	setup := int(image[offSetupSects])
	if setup == 0 {
		setup = 4
	}
	start := (setup+1)*sectorLength + int(binary.LittleEndian.Uint32(image[offPayload:]))
	length := int(binary.LittleEndian.Uint32(image[offPayloadLength:]))
	if length < 4 || start+length > len(image) {
		return nil, fmt.Errorf("the payload, %d bytes at %d, is not within the image of %d bytes", length, start, len(image))
	}
	return image[start : start+length], nil
}

func decompress(ctx context.Context, data []byte) ([]byte, error) {
	for _, c := range compressions {
		if !bytes.HasPrefix(data, []byte(c.magic)) {
			continue
		}
		if c.command == nil {
			r, err := gzip.NewReader(bytes.NewReader(data))
			if err != nil {
				return nil, err
			}
			return io.ReadAll(r)
		}
		var stderr bytes.Buffer
		cmd := exec.CommandContext(ctx, c.command[0], c.command[1:]...)
		cmd.Stdin, cmd.Stderr = bytes.NewReader(data), &stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("run %s: %w: %s", c.command[0], err, lastLines(stderr.Bytes(), 3))
		}
		return out, nil
	}
	return nil, fmt.Errorf("unknown compression, starts with % x", data[:min(6, len(data))])
}
