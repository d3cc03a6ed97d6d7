// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestDefinesMatch holds the constants that BTF does not carry to the #defines of abi.h.
func TestDefinesMatch(t *testing.T) {
	src, err := os.ReadFile("abi.h")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint64{
		"NAT_ABI_VERSION": ABIVersion, "NAT_ZONES": Zones, "NAT_REALMS": Realms, "NAT_LINKS": Links,
		"NAT_ADDRESSES": Addresses, "NAT_SETS": Sets, "NAT_HOST_PAIRS": HostPairs, "EXTERNAL_NAMED": ExternalNamed, "BINDING_OWN": BindingOwn, "NAT_PROTOCOLS": Protocols, "NAT_PREFIXES": Prefixes,
		"NAT_TICK_SHIFT": TickShift, "NAT_ZONE_LAST": ZoneLast, "NAT_ZONE_HOST": ZoneHost,
		"NAT_ZONE_CLAIM": ZoneClaim, "LINK_PEER": LinkPeer, "LINK_LAYER3": LinkLayer3, "LINK_XDP": LinkXDP, "LINK_DROP_UNSOLICITED": LinkUnsolicited, "LINK_XDP_PEER": LinkXDPPeer, "LINK_GRO_SWITCHED": LinkGROSwitched,
		"HALF_PRIMARY": HalfPrimary, "HALF_HAIRPIN": HalfHairpin, "HALF_SELF": HalfSelf,
		"BINDING_STATIC": BindingStatic, "BINDING_DYING": BindingDying, "CLAIM_HOST": ClaimHost,
		"EVENT_FLAG_STATIC": EventFlagStatic, "EVENT_FLAG_HAIRPIN": EventFlagHairpin,
		"BIND_OVER_SOCKET": BindOverSocket, "LINK_STACK": LinkStack, "NAT_LABEL_LEN": LabelLen,
		"ZONE_ISOLATED": ZoneIsolated, "ZONE_OVERLAPS": ZoneOverlaps, "NAT_ZONE_OUTSIDE": ZoneOutside, "NAT_NO_SLOT": NoSlot, "ZONE_EXCLUDES": ZoneExcludes, "ZONE_NPTV6": ZoneNPTv6, "ZONE_ROUTED": ZoneRouted, "NAT_EXCLUSIONS": Exclusions, "OWNER_EXCLUDED": OwnerExcluded, "OWNER_FILTERING": OwnerFiltering, "OWNER_ONE_TO_ONE": OwnerOneToOne,
		"SEEN_SYN": SeenSYN, "SEEN_FIN": SeenFIN, "SEEN_RST": SeenRST, "SEEN_OTHER": SeenOther,
		"BINDING_INDEXED": BindingIndexed, "BINDING_PUBLISHED": BindingPublished, "BINDING_RETIRED": BindingRetired, "BIND_PUBLISHED": BindPublished, "RESERVE_FORWARDED": ReserveForwarded,
	} {
		m := regexp.MustCompile(`(?m)^#define ` + name + `\s+(.+?)(?:\s*/\*.*)?$`).FindSubmatch(src)
		if m == nil {
			t.Errorf("%s: not in abi.h", name)
			continue
		}
		if got := evaluate(t, string(m[1])); got != want {
			t.Errorf("%s is %d in Go, %s in abi.h", name, want, m[1])
		}
	}
}

// evaluate reads "N", "0xN" with C suffixes, and "(N << M)".
func evaluate(t *testing.T, expr string) uint64 {
	t.Helper()
	left, right, shifted := strings.Cut(strings.Trim(expr, "()"), "<<")
	value := parse(t, left)
	if shifted {
		value <<= parse(t, right)
	}
	return value
}

func parse(t *testing.T, number string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(strings.TrimRight(strings.TrimSpace(number), "UL"), 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestEveryReasonHasAName: a counter without a name would be one that nobody sees.
func TestEveryReasonHasAName(t *testing.T) {
	for r := range ReasonCount {
		want := map[bool]string{r <= ReasonLastTranslated: "translated_"}[true]
		switch {
		case r == 0:
			want = "none"
		case r > ReasonLastPassed:
			want = "dropped_"
		case r > ReasonLastDiverted:
			want = "passed_"
		case r > ReasonLastTranslated:
			want = "diverted_"
		}
		if name := ReasonName(r); !strings.HasPrefix(name, want) {
			t.Errorf("reason %d is named %q, want %q…", r, name, want)
		}
	}
}
