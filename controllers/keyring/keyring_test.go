package keyring

import (
	"crypto/ed25519"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/token"
)

func TestKeysAreReadFromTheSecret(t *testing.T) {
	key, err := token.GenerateKey()
	require.NoError(t, err)
	id := token.KeyID(key.Public().(ed25519.PublicKey))
	text, err := token.FormatPrivateKey(key)
	require.NoError(t, err)
	tests := map[string]struct {
		data    map[string][]byte
		current string
		keys    int
		wantErr string
	}{
		"no keys yet":                     {},
		"one key":                         {data: map[string][]byte{id: text, currentEntry: []byte(id)}, current: id, keys: 1},
		"a rotation asked for":            {data: map[string][]byte{id: text}, keys: 1},
		"a current key that is not there": {data: map[string][]byte{currentEntry: []byte(id)}, wantErr: "which is not there"},
		"a key under another's id":        {data: map[string][]byte{"other": text}, wantErr: "holds the key of id"},
		"no key":                          {data: map[string][]byte{id: []byte("secret text")}, wantErr: "not PEM"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			current, keys, err := parse(test.data)
			if test.wantErr != "" {
				require.ErrorContains(t, err, test.wantErr)
				require.NotContains(t, err.Error(), "secret text")
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.current, current)
			require.Len(t, keys, test.keys)
		})
	}
}

func TestWithoutANamespaceTheKeyIsThisProcessesAlone(t *testing.T) {
	var k Keyring
	require.Nil(t, k.Current())
	require.NoError(t, k.Load(t.Context(), nil, nil, ""))
	require.Same(t, k.Current(), k.Signer(k.Current().KeyID()))
	require.Nil(t, k.Signer("other"))
}
