// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
)

// DefaultStateDir is where the pins are unless --state-dir says otherwise.
const DefaultStateDir = "/sys/fs/bpf/conenat"

// DefaultCapacity takes 97 MB of kernel memory, as the kernel counts it for the maps (docs/decisions/0001-map-layout.md, 0014-pools.md).
var DefaultCapacity = Capacity{Sessions: 131072, Bindings: 65536}

// Options are what Open needs to know.
type Options struct {
	StateDir        string       // a directory; where it is on no bpffs, one is mounted
	Capacity        Capacity     // of new maps; zero: DefaultCapacity; adopted maps keep theirs
	VerifierLog     bool         // on a refusal, the verifier's whole log is in the error
	DisableFeatures []string     // features to do without: see FeatureNames
	Logger          *slog.Logger // nil: none
	VirtualClock    bool         // tests: time stands still, and moves by SetClock
}

// Dataplane is a loaded packet path and its pinned state. Its methods may be called from any goroutine.
type Dataplane struct {
	loaded
	events *eventReader
	writes writeLock

	reordering reordering // under writes

	knownMu sync.Mutex
	known   *names               // nil: to be read
	linked  map[uint32]*bpf.Link // what the tables of links hold, by index; nil: to be read

	epochMu sync.Mutex
	epoch   time.Time // wall time of 0 of the monotonic clock
}

// loaded is what Open has made of its options, and stays as it is.
type loaded struct {
	objs     bpf.Objects
	opts     Options
	log      *slog.Logger
	features Features
	stateDir string // as this process reaches it
	pins     string // directory of this ABI version's pins
	lock     *os.File
	adopted  bool
	capacity Capacity
}

// Open loads the programs and makes the maps, or adopts those that an earlier daemon left pinned. It
// attaches nothing that is not attached: the hooks of adopted links keep running the old programs until
// Attach is called for them.
//
// Errors: ErrPermission, ErrNotSupported, ErrInUse, ErrABI.
func Open(opts Options) (*Dataplane, error) {
	if opts.StateDir == "" {
		opts.StateDir = DefaultStateDir
	}
	if opts.Capacity == (Capacity{}) {
		opts.Capacity = DefaultCapacity
	}
	d := &Dataplane{loaded: loaded{opts: opts, log: opts.Logger}}
	if d.log == nil {
		d.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if err := checkPrivileges(); err != nil {
		return nil, err
	}
	features, err := probeFeatures(opts.DisableFeatures)
	if err != nil {
		return nil, err
	}
	d.features = features
	if err := d.open(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Dataplane) open() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("raise the locked-memory limit: %w", err)
	}
	lock, err := lockStateDir(d.opts.StateDir)
	if err != nil {
		return err
	}
	d.lock = lock
	// By its descriptor: the path may lead through the mounts of a process that ends before this one.
	d.stateDir = fmt.Sprintf("/proc/self/fd/%d", lock.Fd())
	d.pins = pinDir(d.stateDir)
	if d.adopted, err = checkPins(d.stateDir); err == nil && d.adopted {
		err = checkNamespace(d.pins)
	}
	if err != nil {
		return fmt.Errorf("adopt %s: %w", d.opts.StateDir, err)
	}
	if err := d.load(); err != nil {
		return err
	}
	return d.start()
}

// start arms the sweeper's timer with the program just loaded, and opens the events.
func (d *Dataplane) start() (err error) {
	if err = d.arm(); err != nil {
		return fmt.Errorf("start the sweeper's timer: %w", err)
	}
	d.events, err = newEventReader(d.objs.Events, d.objs.EventsLost)
	return err
}

const (
	armTries = 50
	armPause = 10 * time.Millisecond
)

// arm asks again: bpf_timer_init takes the kernel's memory without waiting for any (GFP_NOWAIT), and may find none just now.
func (d *Dataplane) arm() error {
	for try := 1; ; try++ {
		err := d.request(&bpf.Request{Command: bpf.CommandArm})
		if !errors.Is(err, errFailed) || try == armTries {
			return err
		}
		time.Sleep(armPause)
	}
}

// load makes or adopts the maps. New ones are pinned in a directory of another name, which becomes the
// real one when all of them are there: a load that fails half-way leaves nothing.
func (d *Dataplane) load() error {
	spec, err := d.spec()
	if err != nil {
		return err
	}
	dir := d.pins
	if !d.adopted {
		dir = unfinishedPinDir(d.stateDir)
		if err := removePins(dir, new(RemoveReport)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove unfinished pins %s: %w", dir, err)
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("make pin directory: %w", err)
		}
	}
	err = spec.LoadAndAssign(&d.objs, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}})
	if err == nil && !d.adopted {
		err = d.commit(dir)
	}
	if err != nil {
		if !d.adopted {
			err = errors.Join(err, removePins(dir, new(RemoveReport)))
		}
		return d.loadError(err)
	}
	return nil
}

// commit makes new maps usable, and then the state that a daemon adopts.
func (d *Dataplane) commit(dir string) error {
	cfg := configOf(DefaultSettings())
	cfg.MaxSessions, cfg.MaxBindings = d.capacity.Sessions, d.capacity.Bindings
	var err error
	if cfg.Netns, err = networkNamespace(); err != nil {
		return err
	}
	if err := d.putConfig(cfg); err != nil {
		return err
	}
	return os.Rename(dir, d.pins)
}

func (d *Dataplane) loadError(err error) error {
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) {
		if d.opts.VerifierLog {
			return fmt.Errorf("%w: the verifier of Linux %s refuses a program: %+v", ErrNotSupported, d.features.KernelRelease, verifier)
		}
		return fmt.Errorf("%w: the verifier of Linux %s refuses a program (--verifier-log prints why): %w", ErrNotSupported, d.features.KernelRelease, verifier)
	}
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return fmt.Errorf("adopt pinned maps in %s: %w (%v); run `conenat detach` with the version that made them", d.opts.StateDir, ErrABI, err)
	}
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("load BPF objects: %w: %v", ErrPermission, err)
	}
	return fmt.Errorf("load BPF objects: %w", err)
}

// spec is the embedded object with its constants set and its maps sized.
func (d *Dataplane) spec() (*ebpf.CollectionSpec, error) {
	spec, err := bpf.Load()
	if err != nil {
		return nil, fmt.Errorf("read the embedded BPF object: %w", err)
	}
	d.capacity = d.opts.Capacity
	if d.adopted {
		if d.capacity, err = pinnedCapacity(d.pins); err != nil {
			return nil, err
		}
	}
	sizeMaps(spec, d.capacity)
	constants := map[string]bool{
		bpf.ConstFIBSkipNeigh:   d.features.FIBSkipNeigh,
		bpf.ConstHaveConntrack:  d.features.Conntrack,
		bpf.ConstClockIsVirtual: d.opts.VirtualClock,
	}
	for name, value := range constants {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set constant %s: %w", name, err)
		}
	}
	return spec, nil
}

// sizeMaps gives every map of sessions and bindings its size. A session has two halves; claims hold the host's ports beside
// the bindings; one more internal endpoint is that of a binding which becomes a static one, until its old key is gone.
func sizeMaps(spec *ebpf.CollectionSpec, c Capacity) {
	for name, entries := range map[string]uint32{
		bpf.MapSessions:     2 * c.Sessions,
		bpf.MapSessionSlots: c.Sessions,
		bpf.MapSessionFree:  c.Sessions,
		bpf.MapPermissions:  c.Sessions,
		bpf.MapBindings:     c.Bindings,
		bpf.MapBindingFree:  c.Bindings,
		bpf.MapInternals:    c.Bindings + 1,
		bpf.MapClaims:       2 * c.Bindings,
		bpf.MapHosts:        c.Bindings,
		bpf.MapBlocks:       c.Bindings,
	} {
		spec.Maps[name].MaxEntries = entries
	}
}

func pinnedCapacity(pins string) (Capacity, error) {
	var sizes [2]uint32
	for i, name := range []string{bpf.MapSessionSlots, bpf.MapBindings} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(pins, name), &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return Capacity{}, fmt.Errorf("open pinned map %s: %w", name, err)
		}
		sizes[i] = m.MaxEntries()
		m.Close()
	}
	return Capacity{Sessions: sizes[0], Bindings: sizes[1]}, nil
}

// checkNamespace checks that pinned maps serve this network namespace.
func checkNamespace(pins string) error {
	cfg, err := pinnedConfig(pins)
	if err != nil {
		return err
	}
	netns, err := networkNamespace()
	if err == nil && cfg.Netns != netns {
		err = fmt.Errorf("%w (inode %d, this is %d): give another --state-dir", ErrOtherNamespace, cfg.Netns, netns)
	}
	return err
}

func pinnedConfig(pins string) (cfg bpf.Config, err error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(pins, "config"), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return cfg, fmt.Errorf("open pinned settings: %w", err)
	}
	defer m.Close()
	if err := m.Lookup(uint32(0), &cfg); err != nil {
		return cfg, fmt.Errorf("read pinned settings: %w", err)
	}
	return cfg, nil
}

func networkNamespace() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return 0, fmt.Errorf("stat network namespace: %w", err)
	}
	return st.Ino, nil
}

// Adopted says whether the state was there already.
func (d *Dataplane) Adopted() bool { return d.adopted }

// Capacity is the size of the tables.
func (d *Dataplane) Capacity() Capacity { return d.capacity }

// Features says what of the kernel is used.
func (d *Dataplane) Features() Features { return d.features }

// Objects are the loaded maps and programs, for tests that run programs by BPF_PROG_RUN.
func (d *Dataplane) Objects() *bpf.Objects { return &d.objs }

// SetClock sets the time of a dataplane that was opened with VirtualClock; ns of CLOCK_MONOTONIC.
func (d *Dataplane) SetClock(ns uint64) error {
	if err := d.objs.VirtualNow.Set(ns); err != nil {
		return fmt.Errorf("set virtual clock: %w", err)
	}
	return nil
}

// Renewed is the same programs and maps in a value that remembers nothing of what is in them, for tests that have
// written to the maps themselves and stopped the sweeper's timer. d is not to be used again.
func (d *Dataplane) Renewed() (*Dataplane, error) {
	if err := d.events.close(); err != nil {
		return nil, fmt.Errorf("close event ring: %w", err)
	}
	n := &Dataplane{loaded: d.loaded}
	return n, n.start()
}

// Close lets go of all file descriptors and of the state directory. What is pinned goes on working.
func (d *Dataplane) Close() error {
	var errs []error
	if d.events != nil {
		errs = append(errs, d.events.close())
	}
	errs = append(errs, d.objs.Close())
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
