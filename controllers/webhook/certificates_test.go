package webhook

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	someNames = []string{"service.ns.svc", "service.ns.svc.cluster.local"}
	someTime  = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
)

// trusts says whether a client that has the bundle accepts the pair's certificate.
func trusts(t *testing.T, bundle []byte, p pair, name string, now time.Time) bool {
	t.Helper()
	loaded, err := tls.X509KeyPair(p.certificate, p.key)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(bundle))
	_, err = loaded.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return err == nil
}

func certificatesIn(bundle []byte) int {
	n := 0
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		n++
	}
	return n
}

func TestANewPairIsTrustedByItsBundle(t *testing.T) {
	p, renewed, err := nextPair(pair{}, nil, someNames, someTime)
	require.NoError(t, err)
	assert.True(t, renewed)
	for _, name := range someNames {
		assert.True(t, trusts(t, p.bundle, p, name, someTime), name)
	}
	assert.False(t, trusts(t, p.bundle, p, "other.ns.svc", someTime))
	assert.False(t, trusts(t, p.bundle, p, someNames[0], someTime.Add(validity+time.Hour)), "it ends")

	same, renewed, err := nextPair(p, nil, someNames, someTime.Add(validity-renewal-time.Minute))
	require.NoError(t, err)
	assert.False(t, renewed)
	assert.Equal(t, p, same)
}

func TestWhenAPairIsRenewed(t *testing.T) {
	good, _, err := nextPair(pair{}, nil, someNames, someTime)
	require.NoError(t, err)
	other, _, err := nextPair(pair{}, nil, someNames, someTime)
	require.NoError(t, err)
	cases := []struct {
		name  string
		old   pair
		names []string
		now   time.Time
	}{
		{"it ends soon", good, someNames, someTime.Add(validity - renewal + time.Minute)},
		{"it has ended", good, someNames, someTime.Add(2 * validity)},
		{"it is not valid yet", good, someNames, someTime.Add(-2 * time.Hour)},
		{"it is for another name", good, []string{"service.other.svc"}, someTime},
		{"the key is another one", pair{good.certificate, other.key, good.bundle}, someNames, someTime},
		{"the bundle does not hold it", pair{good.certificate, good.key, other.bundle}, someNames, someTime},
		{"the bundle is missing", pair{good.certificate, good.key, nil}, someNames, someTime},
		{"it is garbage", pair{[]byte("a"), []byte("b"), []byte("c")}, someNames, someTime},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p, renewed, err := nextPair(c.old, nil, c.names, c.now)
			require.NoError(t, err)
			assert.True(t, renewed)
			assert.True(t, trusts(t, p.bundle, p, c.names[0], c.now))
		})
	}
}

// The Secret may be deleted while replicas serve what was in it.
func TestWhatIsServedIsTrustedUntilItEnds(t *testing.T) {
	first, _, err := nextPair(pair{}, nil, someNames, someTime)
	require.NoError(t, err)
	served, err := tls.X509KeyPair(first.certificate, first.key)
	require.NoError(t, err)
	for name, old := range map[string]pair{"deleted": {}, "emptied": {bundle: []byte{}}, "without a key": {certificate: first.certificate, bundle: first.bundle}} {
		second, renewed, err := nextPair(old, &served, someNames, someTime)
		require.NoError(t, err)
		require.True(t, renewed)
		assert.True(t, trusts(t, second.bundle, first, someNames[0], someTime), name)
		assert.Equal(t, 2, certificatesIn(second.bundle), name)
	}
	third, _, err := nextPair(pair{}, &served, someNames, someTime.Add(validity))
	require.NoError(t, err)
	assert.Equal(t, 1, certificatesIn(third.bundle), "what has ended is of no use")
}

func TestJoined(t *testing.T) {
	pairs := make([]pair, mostTrusted+1)
	var all []byte
	for i := range pairs {
		p, err := newPair(someNames, someTime)
		require.NoError(t, err)
		pairs[i], all = p, append(all, p.certificate...)
	}
	a, b := pairs[0], pairs[1]
	ended, err := newPair(someNames, someTime.Add(-validity))
	require.NoError(t, err)
	garbage := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no")})
	both := string(a.certificate) + string(b.certificate)
	assert.Equal(t, both, string(joined(someTime, a.certificate, b.certificate)))
	assert.Equal(t, both, string(joined(someTime, []byte(both), []byte(both), a.certificate)), "each once")
	assert.Equal(t, both, string(joined(someTime, garbage, a.certificate, []byte("text\n"), ended.certificate, b.certificate)), "what is of use")
	assert.Equal(t, b.certificate, joined(someTime, nil, b.certificate))
	bounded := joined(someTime, pairs[mostTrusted].certificate, all)
	assert.Equal(t, mostTrusted, certificatesIn(bounded))
	assert.True(t, trusts(t, bounded, pairs[mostTrusted], someNames[0], someTime), "the first is the newest")
}

// A replica that has not seen the new certificate yet serves the one before.
func TestTheOneBeforeIsTrustedUntilItEnds(t *testing.T) {
	first, _, err := nextPair(pair{}, nil, someNames, someTime)
	require.NoError(t, err)
	now := someTime.Add(validity - renewal + time.Hour)
	second, renewed, err := nextPair(first, nil, someNames, now)
	require.NoError(t, err)
	require.True(t, renewed)
	assert.True(t, trusts(t, second.bundle, first, someNames[0], now))
	assert.True(t, trusts(t, second.bundle, second, someNames[0], now))
	assert.Equal(t, 2, certificatesIn(second.bundle))

	later := now.Add(validity - renewal + time.Hour)
	third, renewed, err := nextPair(second, nil, someNames, later)
	require.NoError(t, err)
	require.True(t, renewed)
	assert.Equal(t, 2, certificatesIn(third.bundle), "the first has ended and is dropped")
}
