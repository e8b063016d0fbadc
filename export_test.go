package gormsessions

// NewToken and ValidToken are the token format, for tests that need millions.
func NewToken(prefix string, randomBytes int) Token {
	return newTokenFormat(prefix, randomBytes).newToken()
}

func ValidToken(prefix string, randomBytes int, token string) bool {
	return newTokenFormat(prefix, randomBytes).matches(token)
}

// These are what MySQL's servers and zones are judged by.
var (
	HasUUID       = hasUUID
	HasSkipLocked = hasSkipLocked
	ClocksChange  = clocksChange
)

// Alone reports whether nobody but GORM and its plugins of this kind has a callback of
// queries and of creates.
func Alone[T any](p *Plugin[T]) (queries, creates bool) {
	b := p.core.bound.Load()
	return b.queries.judge().bare, b.creates.judge().bare
}

// AloneAmong reports that of a list of callbacks of another kind.
func AloneAmong(of interface{ Remove(string) error }) bool { return newChain(of).judge().alone }

// RowsKnown is whether a sql.Row's rows are found.
var RowsKnown = &rowsKnown
