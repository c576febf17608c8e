package ownnamespace

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOnlyTheOwnNamespaceEnds(t *testing.T) {
	own := &OwnNamespace{Config: Config{Name: "own"}}
	require.False(t, own.Ending("own"), "not before it was seen")
	own.ending.Store(true)
	require.True(t, own.Ending("own"))
	require.False(t, own.Ending("other"))
	var none *OwnNamespace
	require.False(t, none.Ending(""), "an operator that runs in no namespace")
	none.Look(t.Context())
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	_, err := New(Config{Name: "own"})
	require.ErrorContains(t, err, "Live, Client, Fresh, Clock missing")
}
