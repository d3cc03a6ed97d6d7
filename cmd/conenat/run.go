// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/daemon"
	"github.com/conenat/conenat/dataplane"
)

// runFlags are the flags of `conenat run`, as they were given.
type runFlags struct {
	file            string
	docker          bool
	inside, outside []string
	external        []string
	exclude         []string
	disable         []string
	verifierLog     bool
}

func runCommand(e env) *cobra.Command {
	var flags runFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon",
		Long: "Run the daemon: translate what leaves the inside interfaces. SIGTERM and Ctrl-C stop the daemon, and the\n" +
			"dataplane goes on translating; `conenat detach` takes it away. Flags override the configuration file.",
		Example: "  conenat run --docker\n" +
			"  conenat run --inside docker0\n" +
			"  conenat run --inside docker0 --inside br-web --outside eth0 --external 198.51.100.1 --filtering endpoint-independent\n" +
			"  conenat run --docker --mapping address-and-port-dependent    # a symmetric NAT, to try what comes of it\n" +
			"  conenat run --config /etc/conenat.yaml",
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringVar(&flags.file, "config", "", "YAML `FILE` to read the configuration from")
	f.BoolVar(&flags.docker, "docker", false, "follow Docker: its bridge networks, containers and published ports (DOCKER_HOST names another engine)")
	f.StringArrayVar(&flags.inside, "inside", nil, "inside interface `IF`: a bridge, with all its ports, or a plain interface; repeatable")
	f.StringArrayVar(&flags.outside, "outside", nil, "outside interface `IF`; repeatable (default: the default route's)")
	f.StringArrayVar(&flags.external, "external", nil, "external addresses `ADDR`, ADDR/BITS or ADDR-ADDR, of the outside interfaces' (default: the first of each); repeatable")
	f.StringArrayVar(&flags.exclude, "exclude", nil, "destinations `PREFIX` that are not translated; repeatable")
	f.String("mapping", "endpoint-independent", "mapping behaviour: endpoint-independent, address-dependent or address-and-port-dependent")
	f.String("filtering", "address-dependent", "filtering behaviour: endpoint-independent, address-dependent or address-and-port-dependent")
	f.String("path", "auto", "packets' path: direct, which the host's FORWARD rules do not see; stack, which they do; auto is direct unless that bypasses somebody's rules")
	f.String("xdp", "auto", "native XDP: gateway, to translate between network cards, too; auto, to drop what is unsolicited where that is asked for; off")
	f.String("unsolicited", "pass", "what comes from outside for a port of the NAT's that nobody has: pass, to the host; drop")
	f.String("ports", "1024-65535", "external ports, `LOW-HIGH`")
	f.String("socket", config.DefaultSocket, "unix socket of the API")
	f.String("state-dir", config.DefaultStateDir, "`DIR` on a bpffs where the dataplane is pinned")
	f.BoolVar(&flags.verifierLog, "verifier-log", false, "print the verifier's whole log when it refuses a program")
	f.StringArrayVar(&flags.disable, "disable-feature", nil, "treat kernel feature `NAME` as missing; repeatable")
	for _, name := range []string{"verifier-log", "disable-feature"} {
		_ = f.MarkHidden(name)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := configuration(f, flags)
		if err != nil {
			return err
		}
		return action(func(cmd *cobra.Command, _ []string) error { return runDaemon(cmd, e, cfg, flags) })(cmd, nil)
	}
	return cmd
}

// configuration is file and flags together. A file that cannot be read is a failure; one that cannot be
// understood is wrong usage, as a flag would be.
func configuration(f *pflag.FlagSet, flags runFlags) (config.Config, error) {
	for _, name := range flags.disable {
		if !slices.Contains(dataplane.FeatureNames, name) {
			return config.Config{}, fmt.Errorf("--disable-feature: unknown feature %q: want one of %s", name, strings.Join(dataplane.FeatureNames, ", "))
		}
	}
	var base config.Layer
	if flags.file != "" {
		r, err := os.Open(flags.file)
		if err != nil {
			return config.Config{}, failure{fmt.Errorf("read the configuration: %w", err)}
		}
		defer r.Close()
		if base, err = config.Parse(flags.file, r); err != nil {
			return config.Config{}, err
		}
	}
	return config.Build(config.Merge(base, layer(f, flags)))
}

// layer is the flags that were given.
func layer(f *pflag.FlagSet, flags runFlags) (l config.Layer) {
	given := func(name string) config.Value {
		if !f.Changed(name) {
			return config.Value{}
		}
		text, _ := f.GetString(name)
		return config.Flag(name, text)
	}
	l.Path, l.Ports = given("path"), given("ports")
	l.XDP.Mode, l.Unsolicited = given("xdp"), given("unsolicited")
	l.Socket, l.StateDir = given("socket"), given("state-dir")
	l.Mapping.All, l.Filtering.All = given("mapping"), given("filtering")
	if flags.docker {
		l.Docker = config.Flag("docker", "true")
	}
	for _, text := range flags.inside {
		l.Inside = append(l.Inside, config.Flag("inside", text))
	}
	for _, text := range flags.outside {
		l.Outside = append(l.Outside, config.Flag("outside", text))
	}
	for _, text := range flags.exclude {
		l.Exclude = append(l.Exclude, config.Flag("exclude", text))
	}
	for _, text := range flags.external {
		l.External = append(l.External, config.Flag("external", text))
	}
	return l
}

func runDaemon(cmd *cobra.Command, e env, cfg config.Config, flags runFlags) error {
	log := slog.New(slog.NewTextHandler(e.stderr, nil))
	deps := daemon.Deps{
		Version: buildVersion(),
		Log:     log,
		Open: func() (daemon.Dataplane, error) {
			return e.open(dataplane.Options{StateDir: cfg.StateDir, Capacity: cfg.Capacity, Logger: log,
				VerifierLog: flags.verifierLog, DisableFeatures: flags.disable})
		},
		Remove: func() error {
			_, err := e.purge(cfg.StateDir)
			return err
		},
		Host:       e.host(),
		Exceptions: e.table(cfg.StateDir),
		Firewall:   e.firewall(),
		Conntrack:  e.conntrack,
	}
	if cfg.Docker {
		engine, err := e.docker(cfg.Mapping, cfg.Filtering)
		if err != nil {
			return err
		}
		deps.Docker = engine
	}
	return daemon.Run(cmd.Context(), cfg, deps)
}
