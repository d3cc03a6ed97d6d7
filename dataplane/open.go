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
	"sync/atomic"
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

	ipv4 *family
	ipv6 atomic.Pointer[family] // nil until something has an address of it

	reordering reordering // under writes
	netns      numbered   // under writes

	linkedMu sync.Mutex
	linked   map[uint32]*bpf.Link // what the tables of links hold, by index; nil: to be read

	epochMu sync.Mutex
	epoch   time.Time // wall time of 0 of the monotonic clock
}

// loaded is what Open has made of its options, and stays as it is.
type loaded struct {
	objs     bpf.Objects
	objs6    bpf.Objects6 // of nil maps and programs while Dataplane.ipv6 is nil
	opts     Options
	log      *slog.Logger
	features Features
	stateDir string // as this process reaches it
	pins     string // directory of this ABI version's pins
	lock     *os.File
	adopted  bool
	capacity Capacity // of IPv4's maps
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

// start arms the sweepers' timers with the programs just loaded, and opens the events.
func (d *Dataplane) start() (err error) {
	if err = d.each((*family).arm); err != nil {
		return err
	}
	d.events, err = newEventReader(d.objs.Events, d.objs.EventsLost)
	return err
}

const (
	armTries = 50
	armPause = 10 * time.Millisecond
)

// arm asks again: bpf_timer_init takes the kernel's memory without waiting for any (GFP_NOWAIT), and may find none just now.
func (f *family) arm() error {
	for try := 1; ; try++ {
		err := f.request(&bpf.Request{Command: bpf.CommandArm})
		if err == nil {
			return nil
		}
		if !errors.Is(err, errFailed) || try == armTries {
			return fmt.Errorf("start the sweeper's timer of %s: %w", f.ipVersion, err)
		}
		time.Sleep(armPause)
	}
}

// load makes or adopts the maps of IPv4, and adopts IPv6's.
func (d *Dataplane) load() error {
	spec, err := bpf.Load()
	if err != nil {
		return fmt.Errorf("read the embedded BPF object: %w", err)
	}
	d.capacity = d.opts.Capacity
	if d.adopted {
		if d.capacity, err = pinnedCapacity(d.pins, ipv4); err != nil {
			return err
		}
	}
	if err := d.prepare(spec, ipv4, d.capacity); err != nil {
		return err
	}
	err = pinned(d.pins, unfinishedPinDir(d.stateDir), func(dir string, made bool) error {
		err := spec.LoadAndAssign(&d.objs, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}})
		if err == nil && made {
			err = d.commit()
		}
		return err
	})
	if err != nil {
		return d.loadError(err)
	}
	d.ipv4 = d.family4()
	return d.adoptIPv6()
}

// pinned has load use the pins in dir. New ones are made in a directory of another name, which becomes the real one when all of
// them are there: a load that fails half-way leaves nothing.
func pinned(dir, unfinished string, load func(dir string, made bool) error) error {
	there, err := exists(dir)
	if err != nil {
		return err
	}
	if there {
		return load(dir, false)
	}
	if err := removePins(unfinished, new(RemoveReport)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove unfinished pins %s: %w", unfinished, err)
	}
	if err := os.Mkdir(unfinished, 0o700); err != nil {
		return fmt.Errorf("make pin directory: %w", err)
	}
	err = load(unfinished, true)
	if err == nil {
		err = os.Rename(unfinished, dir)
	}
	if err != nil {
		err = errors.Join(err, removePins(unfinished, new(RemoveReport)))
	}
	return err
}

func (d *Dataplane) family4() *family {
	return &family{Tables: d.objs.Tables(), ipVersion: ipv4, d: d, control: d.objs.NatControl, capacity: d.capacity}
}

// commit makes new maps usable.
func (d *Dataplane) commit() error {
	cfg := configOf(DefaultSettings())
	cfg.MaxSessions, cfg.MaxBindings = d.capacity.Sessions, d.capacity.Bindings
	var err error
	if cfg.Netns, err = networkNamespace(); err != nil {
		return err
	}
	return d.putConfig(cfg)
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

// prepare sets the constants of an embedded object, and the sizes of its maps.
func (d *Dataplane) prepare(spec *ebpf.CollectionSpec, v ipVersion, c Capacity) error {
	for name, entries := range mapSizes(c) {
		spec.Maps[v.mapName(name)].MaxEntries = entries
	}
	for name, value := range map[string]bool{
		bpf.ConstFIBSkipNeigh:   d.features.FIBSkipNeigh,
		bpf.ConstHaveConntrack:  d.features.Conntrack,
		bpf.ConstClockIsVirtual: d.opts.VirtualClock,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set constant %s: %w", name, err)
		}
	}
	return nil
}

// mapName is that of a map which each family has for itself.
func (v ipVersion) mapName(name string) string { return fmt.Sprintf("%s%d", name, v) }

// Maps by which an earlier daemon's capacity is known.
const (
	sessionSlots = "session_slots"
	bindings     = "bindings"
)

// mapSizes are the entries of every map of sessions and bindings. A session has two halves; claims hold the host's ports beside
// the bindings; one more internal endpoint is that of a binding which becomes a static one, until its old key is gone.
func mapSizes(c Capacity) map[string]uint32 {
	return map[string]uint32{
		"sessions":     2 * c.Sessions,
		sessionSlots:   c.Sessions,
		"session_free": c.Sessions,
		"permissions":  c.Sessions,
		bindings:       c.Bindings,
		"binding_free": c.Bindings,
		"internals":    c.Bindings + 1,
		"claims":       2 * c.Bindings,
		"hosts":        c.Bindings,
		"blocks":       c.Bindings,
	}
}

func pinnedCapacity(pins string, v ipVersion) (Capacity, error) {
	var sizes [2]uint32
	for i, name := range []string{v.mapName(sessionSlots), v.mapName(bindings)} {
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

// Capacity is the size of the tables of each address family.
func (d *Dataplane) Capacity() Capacity { return d.capacity }

// Features says what of the kernel is used.
func (d *Dataplane) Features() Features { return d.features }

// Objects are the loaded maps and programs, for tests that run programs by BPF_PROG_RUN.
func (d *Dataplane) Objects() *bpf.Objects { return &d.objs }

// Objects6 are IPv6's, nil ones while it is not loaded.
func (d *Dataplane) Objects6() *bpf.Objects6 { return &d.objs6 }

// Tables are the maps of the families that are loaded, IPv4's first, for tests that look into them.
func (d *Dataplane) Tables() (list []*bpf.Tables) {
	for _, f := range d.families() {
		list = append(list, f.Tables)
	}
	return list
}

// SetClock sets the time of a dataplane that was opened with VirtualClock; ns of CLOCK_MONOTONIC.
func (d *Dataplane) SetClock(ns uint64) error {
	clocks := []*ebpf.Variable{d.objs.VirtualNow}
	if d.ipv6.Load() != nil {
		clocks = append(clocks, d.objs6.VirtualNow)
	}
	for _, c := range clocks {
		if err := c.Set(ns); err != nil {
			return fmt.Errorf("set virtual clock: %w", err)
		}
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
	n.ipv4 = n.family4()
	if d.ipv6.Load() != nil {
		n.ipv6.Store(n.family6())
	}
	return n, n.start()
}

// Close lets go of all file descriptors and of the state directory. What is pinned goes on working.
func (d *Dataplane) Close() error {
	var errs []error
	if d.events != nil {
		errs = append(errs, d.events.close())
	}
	errs = append(errs, d.objs.Close(), d.objs6.Close())
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
