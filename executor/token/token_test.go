package token

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	pod  = "0b5f8f2e-0000-4000-8000-000000000001"
	boot = "11112222333344445555666677778888"
)

func key(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune(seed)), ed25519.SeedSize)))
}

func verifier(t testing.TB, signers ...*Signer) *Verifier {
	t.Helper()
	keys := map[string]ed25519.PublicKey{}
	for _, s := range signers {
		keys[s.KeyID()] = s.PublicKey()
	}
	v, err := NewVerifier(keys, pod)
	require.NoError(t, err)
	return v
}

func body(text string) func() ([]byte, error) {
	return func() ([]byte, error) { return []byte(text), nil }
}

var good = Request{PodUID: pod, BootID: boot, Method: "PUT", Path: "/v1/tasks/a?x=1", Body: []byte("{}")}

func TestAGoodTokenIsGoodOnce(t *testing.T) {
	s := NewSigner(key('a'))
	v := verifier(t, s)
	bearer, err := s.Sign(good)
	require.NoError(t, err)
	got, err := v.Verify(bearer, boot, "PUT", "/v1/tasks/a?x=1", body("{}"))
	require.NoError(t, err)
	assert.Equal(t, "{}", string(got))
	_, err = v.Verify(bearer, boot, "PUT", "/v1/tasks/a?x=1", body("{}"))
	assert.Equal(t, ErrUnauthorized, err, "replayed")
}

func TestTokensThatAreRefused(t *testing.T) {
	s, stranger := NewSigner(key('a')), NewSigner(key('b'))
	sign := func(change func(*Request)) string {
		r := good
		change(&r)
		bearer, err := s.Sign(r)
		require.NoError(t, err)
		return bearer
	}
	forged := func(method jwt.SigningMethod, key any, change func(*jwt.Token, *claims)) string {
		now := time.Now()
		c := claims{Method: good.Method, Path: good.Path, Digest: digest(good.Body), BootID: boot, RegisteredClaims: jwt.RegisteredClaims{
			Audience: jwt.ClaimStrings{pod}, IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(Lifetime)), ID: "x",
		}}
		token := jwt.NewWithClaims(method, &c)
		token.Header["kid"] = s.KeyID()
		change(token, &c)
		bearer, err := token.SignedString(key)
		require.NoError(t, err)
		return bearer
	}
	byStranger, err := stranger.Sign(good)
	require.NoError(t, err)
	fine := sign(func(*Request) {})
	for name, bearer := range map[string]string{
		"nothing":              "",
		"garbage":              "a.b.c",
		"another pod":          sign(func(r *Request) { r.PodUID = "other" }),
		"no pod":               sign(func(r *Request) { r.PodUID = "" }),
		"another boot":         sign(func(r *Request) { r.BootID = strings.Repeat("9", 32) }),
		"no boot":              sign(func(r *Request) { r.BootID = "" }),
		"another method":       sign(func(r *Request) { r.Method = "DELETE" }),
		"another path":         sign(func(r *Request) { r.Path = "/v1/tasks/b?x=1" }),
		"another query":        sign(func(r *Request) { r.Path = "/v1/tasks/a?x=2" }),
		"another body":         sign(func(r *Request) { r.Body = []byte("{ }") }),
		"another key":          byStranger,
		"a changed signature":  fine[:len(fine)-3] + "AAA",
		"no algorithm":         forged(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, func(*jwt.Token, *claims) {}),
		"HMAC with the key":    forged(jwt.SigningMethodHS256, []byte(s.PublicKey()), func(*jwt.Token, *claims) {}),
		"another key's name":   forged(jwt.SigningMethodEdDSA, key('b'), func(*jwt.Token, *claims) {}),
		"an unknown key":       forged(jwt.SigningMethodEdDSA, key('a'), func(t *jwt.Token, _ *claims) { t.Header["kid"] = "?" }),
		"no key name":          forged(jwt.SigningMethodEdDSA, key('a'), func(t *jwt.Token, _ *claims) { delete(t.Header, "kid") }),
		"a long life":          forged(jwt.SigningMethodEdDSA, key('a'), func(_ *jwt.Token, c *claims) { c.ExpiresAt = jwt.NewNumericDate(time.Now().Add(time.Hour)) }),
		"no end":               forged(jwt.SigningMethodEdDSA, key('a'), func(_ *jwt.Token, c *claims) { c.ExpiresAt = nil }),
		"no beginning":         forged(jwt.SigningMethodEdDSA, key('a'), func(_ *jwt.Token, c *claims) { c.IssuedAt = nil }),
		"no id":                forged(jwt.SigningMethodEdDSA, key('a'), func(_ *jwt.Token, c *claims) { c.ID = "" }),
		"this pod and another": forged(jwt.SigningMethodEdDSA, key('a'), func(_ *jwt.Token, c *claims) { c.Audience = append(c.Audience, "other") }),
	} {
		t.Run(name, func(t *testing.T) {
			v := verifier(t, s)
			_, err := v.Verify(bearer, boot, good.Method, good.Path, body("{}"))
			assert.Equal(t, ErrUnauthorized, err, "and nothing else is said")
		})
	}
}

func TestAClockThatIsOffIsToldApart(t *testing.T) {
	s := NewSigner(key('a'))
	for name, test := range map[string]struct {
		off    time.Duration
		change func(*Request)
		want   error
	}{
		"expired":                       {-Lifetime - leeway - 2*time.Second, func(*Request) {}, ErrClock},
		"from the future":               {leeway + 5*time.Second, func(*Request) {}, ErrClock},
		"expired and of another pod":    {-time.Hour, func(r *Request) { r.PodUID = "other" }, ErrUnauthorized},
		"a little late, within leeway":  {-leeway / 2, func(*Request) {}, nil},
		"a little early, within leeway": {leeway / 2, func(*Request) {}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			signer := *s
			signer.now = func() time.Time { return time.Now().Add(test.off) }
			request := good
			test.change(&request)
			bearer, err := signer.Sign(request)
			require.NoError(t, err)
			_, err = verifier(t, s).Verify(bearer, boot, good.Method, good.Path, body("{}"))
			assert.Equal(t, test.want, err)
		})
	}
	stranger := NewSigner(key('b'))
	stranger.now = func() time.Time { return time.Now().Add(-time.Hour) }
	bearer, err := stranger.Sign(good)
	require.NoError(t, err)
	_, err = verifier(t, s).Verify(bearer, boot, good.Method, good.Path, body("{}"))
	assert.Equal(t, ErrUnauthorized, err, "a stranger learns nothing of the clock")
}

func TestAPodsKeyIsReadAsItWasWritten(t *testing.T) {
	want := key('a')
	got, err := ParseSeed(FormatSeed(want))
	require.NoError(t, err)
	assert.Equal(t, want, got)
	public, err := ParsePublicKey(FormatPublicKey(publicHalf(want)))
	require.NoError(t, err)
	assert.Equal(t, want.Public(), public)
	for _, bad := range []string{"", "AAAA", "!"} {
		_, err := ParseSeed(bad)
		assert.Error(t, err, bad)
	}
}

func TestTheBodyIsNotReadForABadToken(t *testing.T) {
	v := verifier(t, NewSigner(key('a')))
	_, err := v.Verify("a.b.c", boot, "PUT", "/", func() ([]byte, error) {
		t.Fatal("read")
		return nil, nil
	})
	assert.Equal(t, ErrUnauthorized, err)
}

func TestAnErrorOfTheBodyIsPassedOn(t *testing.T) {
	s := NewSigner(key('a'))
	bearer, err := s.Sign(good)
	require.NoError(t, err)
	broken := errors.New("broken")
	_, err = verifier(t, s).Verify(bearer, boot, good.Method, good.Path, func() ([]byte, error) { return nil, broken })
	assert.Equal(t, broken, err)
}

func TestUsedTokensAreForgottenInTime(t *testing.T) {
	s := NewSigner(key('a'))
	v := verifier(t, s)
	now := time.Now()
	v.now = func() time.Time { return now }
	s.now = v.now
	for range 5 {
		for range 100 {
			bearer, err := s.Sign(good)
			require.NoError(t, err)
			_, err = v.Verify(bearer, boot, good.Method, good.Path, body("{}"))
			require.NoError(t, err)
		}
		now = now.Add(2 * (Lifetime + leeway))
	}
	assert.LessOrEqual(t, len(v.used), 200)
}

// It must not be good again before its time is over.
func TestAUsedTokenIsNotForgottenTooEarly(t *testing.T) {
	s := NewSigner(key('a'))
	v := verifier(t, s)
	began := time.Now().Truncate(time.Second)
	now := began
	v.now = func() time.Time { return now }
	s.now = v.now
	verify := func(bearer string) error {
		_, err := v.Verify(bearer, boot, good.Method, good.Path, body("{}"))
		return err
	}
	first, err := s.Sign(good)
	require.NoError(t, err)
	require.NoError(t, verify(first))
	for now.Before(began.Add(2 * (Lifetime + leeway))) {
		now = now.Add(time.Second / 2)
		other, err := s.Sign(good)
		require.NoError(t, err)
		require.NoError(t, verify(other)) // which is when others are forgotten
		require.Error(t, verify(first), "after %v", now.Sub(began))
	}
}

func TestRotation(t *testing.T) {
	old, fresh := NewSigner(key('a')), NewSigner(key('b'))
	v := verifier(t, old, fresh)
	for _, s := range []*Signer{old, fresh} {
		bearer, err := s.Sign(good)
		require.NoError(t, err)
		_, err = v.Verify(bearer, boot, good.Method, good.Path, body("{}"))
		assert.NoError(t, err)
	}
}

func TestKeysAreReadAsTheyAreWritten(t *testing.T) {
	private, err := GenerateKey()
	require.NoError(t, err)
	text, err := FormatPrivateKey(private)
	require.NoError(t, err)
	again, err := ParsePrivateKey(text)
	require.NoError(t, err)
	assert.Equal(t, private, again)

	public := private.Public().(ed25519.PublicKey)
	want := map[string]ed25519.PublicKey{KeyID(public): public}
	written := FormatPublicKeys(public)
	assert.JSONEq(t, `{"`+KeyID(public)+`":"`+base64.StdEncoding.EncodeToString(public)+`"}`, written)
	got, err := ParsePublicKeys(written)
	require.NoError(t, err)
	assert.Equal(t, want, got)
	for _, bad := range []string{"", "{}", "{", "null", `{"a":"AAAA"}`, `{"a":null}`, `{"a":1}`, "AAAA"} {
		_, err := ParsePublicKeys(bad)
		require.Error(t, err, bad)
	}
	_, err = ParsePrivateKey([]byte("secret text"))
	require.ErrorContains(t, err, "not PEM")
	assert.NotContains(t, fmt.Sprint(err), "secret")
}

func FuzzVerify(f *testing.F) {
	s := NewSigner(key('a'))
	other := good
	other.PodUID = "other"
	bearer, err := s.Sign(other)
	require.NoError(f, err)
	f.Add(bearer, good.Method, good.Path, "{}")
	f.Add("eyJhbGciOiJub25lIn0.e30.", "GET", "/", "")
	f.Add("..", "", "", "")
	f.Add(strings.Repeat("a.", 100), "GET", "/v1/tasks", "")
	v := verifier(f, s)
	f.Fuzz(func(t *testing.T, bearer, method, path, text string) {
		_, err := v.Verify(bearer, boot, method, path, body(text))
		require.Equal(t, ErrUnauthorized, err, "no input without the key is good")
	})
}
