package main

import (
	"flag"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAShortRunMakesAllPartsSmall(t *testing.T) {
	var o, long options
	flags, all := flag.NewFlagSet("", flag.ContinueOnError), flag.NewFlagSet("", flag.ContinueOnError)
	o.register(flags)
	long.register(all)
	require.NoError(t, flags.Parse([]string{"-short", "-sizes=7"}))
	require.NoError(t, shorten(flags))
	require.Equal(t, "7", o.sizes, "what the command line sets stays")
	require.Equal(t, 1, o.rounds)

	parts, err := o.parts()
	require.NoError(t, err)
	whole, err := long.parts()
	require.NoError(t, err)
	require.Len(t, parts, len(whole), "no part is left out")

	// What says no size: which ways there are, and where things are.
	others := map[string]bool{"short": true, "recycle": true, "manager": true, "json": true, "keep": true, "namespace": true}
	flags.VisitAll(func(f *flag.Flag) {
		require.True(t, others[f.Name] || short[f.Name] != "", "-short sets nothing for -%s", f.Name)
	})
}
