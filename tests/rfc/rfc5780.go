// SPDX-License-Identifier: Apache-2.0

package rfc

var rfc5780 = Document{"RFC 5780", "discovery, run inside, says what is configured", []Requirement{
	{"mapping", Must, "each of the three mapping behaviours is found as what it is", Holds, ""},
	{"filtering", Must, "each of the three filtering behaviours is found as what it is", Holds, ""},
	{"hairpin", Must, "hairpinning is found, from the external endpoint", Holds, ""},
	{"lifetime", Must, "a binding's lifetime is found to be the configured one", Holds, "shown with one of 2 s"},
}}
