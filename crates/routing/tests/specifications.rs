//! Policies, evictions and touch orders as they are written on the command line: defaults, canonical text, strict errors.

use moce_routing::{
    CachePrior, Cumulative, DropCold, Error, EvictionSpec, Lambda, MaxRank, Policy, Prune, Swap, TouchOrder,
};

fn cache_prior(lambda: f64, j: Option<usize>) -> Policy {
    Policy::CachePrior(CachePrior { lambda: Lambda::Uniform(lambda), j })
}

#[test]
fn policies_are_read_and_printed_in_canonical_form() {
    let cases = [
        ("original", Policy::Original, "original"),
        ("exact", Policy::Original, "original"),
        ("balanced", cache_prior(0.1, None), "cache-prior:lambda=0.1"),
        ("fast", cache_prior(0.2, None), "cache-prior:lambda=0.2"),
        ("cache-prior", cache_prior(0.1, None), "cache-prior:lambda=0.1"),
        ("cache-prior:j=0,lambda=15%", cache_prior(0.15, Some(0)), "cache-prior:lambda=0.15,j=0"),
        ("cache-prior:lambda=1e-6", cache_prior(1e-6, None), "cache-prior:lambda=0.000001"),
        (
            "cache-prior:lambda=0.1:0.25,j=2",
            Policy::CachePrior(CachePrior { lambda: Lambda::PerLayer(vec![0.1, 0.25]), j: Some(2) }),
            "cache-prior:lambda=0.1:0.25,j=2",
        ),
        ("prune", Policy::Prune(Prune { k: None }), "prune"),
        ("prune:k=2", Policy::Prune(Prune { k: Some(2) }), "prune:k=2"),
        ("drop-cold:j=1", Policy::DropCold(DropCold { j: Some(1) }), "drop-cold:j=1"),
        ("swap:seed=1,rank=3", Policy::Swap(Swap { rank: 3, seed: 1 }), "swap:rank=3,seed=1"),
        ("max-rank", Policy::MaxRank(MaxRank { m: None, j: None }), "max-rank"),
        ("max-rank:j=2", Policy::MaxRank(MaxRank { m: None, j: Some(2) }), "max-rank:j=2"),
        ("max-rank:m=8,j=2", Policy::MaxRank(MaxRank { m: Some(8), j: Some(2) }), "max-rank:m=8,j=2"),
        ("cumulative", Policy::Cumulative(Cumulative { p: 0.7, j: None }), "cumulative:p=0.7"),
        ("cumulative:p=70%,j=2", Policy::Cumulative(Cumulative { p: 0.7, j: Some(2) }), "cumulative:p=0.7,j=2"),
        ("fast:except=0", cache_prior(0.2, None).except(vec![0]), "cache-prior:lambda=0.2,except=0"),
        (
            "cache-prior:except=7:0:7,lambda=0.2,j=1",
            cache_prior(0.2, Some(1)).except(vec![0, 7]),
            "cache-prior:lambda=0.2,j=1,except=0:7",
        ),
        ("drop-cold:except=3", Policy::DropCold(DropCold { j: None }).except(vec![3]), "drop-cold:except=3"),
    ];
    for (text, policy, canonical) in cases {
        assert_eq!(text.parse(), Ok(policy.clone()), "{text}");
        assert_eq!(policy.to_string(), canonical);
        assert_eq!(canonical.parse(), Ok(policy), "{canonical}");
    }
}

#[test]
fn leaving_layers_out_twice_leaves_out_both() {
    assert_eq!(Policy::Original.except(vec![0]), Policy::Original);
    assert_eq!(cache_prior(0.2, None).except(vec![]), cache_prior(0.2, None));
    let twice = cache_prior(0.2, None).except(vec![3]).except(vec![3, 0]);
    assert_eq!(twice.to_string().parse(), Ok(cache_prior(0.2, None).except(vec![0, 3])));
    assert_eq!(twice, cache_prior(0.2, None).except(vec![0, 3]));
}

#[test]
fn resolving_writes_the_defaults_out() {
    let cases = [
        ("balanced", (60, 4), "cache-prior:lambda=0.1,j=2"),
        ("balanced", (16, 2), "cache-prior:lambda=0.1,j=1"),
        ("balanced", (64, 1), "cache-prior:lambda=0.1,j=1"),
        ("cache-prior:j=9", (60, 4), "cache-prior:lambda=0.1,j=4"),
        ("prune", (60, 4), "prune:k=3"),
        ("max-rank", (60, 4), "max-rank:m=8,j=2"),
        ("max-rank", (5, 4), "max-rank:m=5,j=1"),
        ("cumulative", (8, 2), "cumulative:p=0.7,j=1"),
        ("drop-cold", (17, 2), "drop-cold:j=2"),
        ("drop-cold:except=1", (17, 2), "drop-cold:j=2,except=1"),
    ];
    for (text, (experts, experts_per_token), resolved) in cases {
        let policy: Policy = text.parse().unwrap();
        assert_eq!(policy.resolved(experts, experts_per_token).unwrap().to_string(), resolved);
    }
}

#[test]
fn bad_policies_are_refused_with_what_is_allowed() {
    let cases = [
        ("", "routing ``: allowed is original"),
        ("Original", "routing `Original`"),
        ("cache_prior", "routing `cache_prior`"),
        ("original:j=1", "routing original `j=1`: allowed is no parameter"),
        ("balanced:lambda=0.3", "routing balanced `lambda=0.3`: allowed is except"),
        ("cache-prior:", "routing `cache-prior:`: allowed is NAME or NAME:key=value"),
        ("cache-prior:lambda", "routing `cache-prior:lambda`"),
        ("cache-prior:lambda=0.1,lambda=0.2", "each key once"),
        ("cache-prior:lambda=-0.1", "routing cache-prior: lambda `-0.1`: allowed is a number of 0 or more"),
        ("cache-prior:lambda=nan", "routing cache-prior: lambda `nan`"),
        ("cache-prior:m=8", "routing cache-prior `m=8`: allowed is lambda, j, except"),
        (
            "cache-prior:except=first",
            "routing cache-prior: except `first`: allowed is layers, from 0, with colons between",
        ),
        ("cache-prior:except=0:", "routing cache-prior: except `0:`"),
        ("cache-prior:except=+1", "routing cache-prior: except `+1`"),
        ("original:except=0", "routing original: except `0`: allowed is no parameter"),
        ("nosuch:except=x", "routing `nosuch`: allowed is original"),
        ("cache-prior:j=2.0", "routing cache-prior: j `2.0`: allowed is a whole number"),
        ("max-rank:m=-1", "routing max-rank: m `-1`"),
        ("max-rank:m= 8", "routing max-rank: m ` 8`"),
        ("cumulative:p=0.7x", "routing cumulative: p `0.7x`: allowed is a share from 0 to 1"),
        ("cumulative:p=150%", "routing cumulative: p `150%`: allowed is a share from 0 to 1"),
        ("swap:rank=3", "routing swap: seed is missing"),
        ("swap", "routing swap: rank is missing"),
        ("prune:k=99999999999999999999", "routing prune: k `99999999999999999999`"),
    ];
    for (text, message) in cases {
        let error = text.parse::<Policy>().unwrap_err().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
}

#[test]
fn parameters_must_fit_the_layer() {
    let good =
        ["prune:k=0", "prune:k=4", "max-rank:m=0,j=60", "cumulative:p=0", "cumulative:p=1", "swap:rank=4,seed=0"];
    for text in good {
        assert_eq!(text.parse::<Policy>().unwrap().validate(60, 4), Ok(()), "{text}");
    }
    let bad = [
        ("prune:k=5", "prune: k is 5, allowed is 0 to 4 (layer with 60 experts, 4 a token)"),
        ("drop-cold:j=0", "drop-cold: j is 0, allowed is 1 to 60"),
        ("drop-cold:j=61", "drop-cold: j is 61"),
        ("swap:rank=0,seed=1", "swap: rank is 0, allowed is 1 to 4"),
        ("swap:rank=5,seed=1", "swap: rank is 5"),
        ("max-rank:m=61", "max-rank: m is 61, allowed is 0 to 60"),
        ("max-rank:j=61", "max-rank: j is 61"),
        ("cumulative:j=61", "cumulative: j is 61"),
        ("cache-prior:j=61", "cache-prior: j is 61"),
    ];
    for (text, message) in bad {
        let error = text.parse::<Policy>().unwrap().validate(60, 4).unwrap_err().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
    for lambda in [-0.1, f64::NAN, f64::INFINITY] {
        assert!(cache_prior(lambda, None).validate(60, 4).is_err(), "{lambda}");
    }
    for p in [-0.1, 1.01, f64::NAN] {
        assert!(Policy::Cumulative(Cumulative { p, j: None }).validate(60, 4).is_err(), "{p}");
    }
    assert!("prune".parse::<Policy>().unwrap().validate(60, 1).is_err(), "k = 0 must be said");
    assert!(matches!("prune:k=0".parse::<Policy>().unwrap().validate(60, 1), Ok(())));
}

#[test]
fn lambda_may_be_a_file_with_one_number_per_layer() {
    let read = |path: &str| match path {
        "lambdas.txt" => Ok("# from a tuning run\n0.1\n0.2 # sensitive\n\n15%\n".to_owned()),
        "words.txt" => Ok("0.1\nmuch\n".to_owned()),
        _ => Err("no such file".to_owned()),
    };
    let lambda = Lambda::PerLayer(vec![0.1, 0.2, 0.15]);
    let expected = Policy::CachePrior(CachePrior { lambda, j: Some(1) });
    assert_eq!(Policy::parse("cache-prior:lambda=lambdas.txt,j=1", read), Ok(expected));
    let error = Policy::parse("cache-prior:lambda=words.txt", read).unwrap_err().to_string();
    assert!(error.contains("`much`"), "{error}");
    let error = Policy::parse("cache-prior:lambda=0.l", read).unwrap_err().to_string();
    assert!(error.contains("lambda `0.l`") && error.contains("no such file"), "{error}");
}

#[test]
fn evictions_are_read_and_printed_in_canonical_form() {
    let cases = [
        ("lru", EvictionSpec::Lru, "lru"),
        ("lfu", EvictionSpec::Lfu { memory: 256 }, "lfu:memory=256"),
        ("lfu:memory=16", EvictionSpec::Lfu { memory: 16 }, "lfu:memory=16"),
        ("score", EvictionSpec::Score { memory: 32 }, "score:memory=32"),
        ("s3fifo", EvictionSpec::S3Fifo, "s3fifo"),
    ];
    for (text, eviction, canonical) in cases {
        assert_eq!(text.parse(), Ok(eviction));
        assert_eq!(eviction.to_string(), canonical);
        assert_eq!(canonical.parse(), Ok(eviction));
    }
    let bad = [
        ("belady", "eviction `belady`: allowed is lru, lfu[:memory=N], score[:memory=N], s3fifo"),
        ("lru:memory=2", "eviction lru `memory=2`: allowed is no parameter"),
        ("lfu:memory=0", "eviction `lfu:memory=0`: allowed is a memory of 1 or more"),
        ("score:memory=x", "eviction score: memory `x`: allowed is a whole number of tokens"),
        ("lfu:size=2", "eviction lfu `size=2`: allowed is memory"),
    ];
    for (text, message) in bad {
        let error = text.parse::<EvictionSpec>().unwrap_err().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
}

#[test]
fn touch_orders_are_read_and_printed() {
    for order in [TouchOrder::StrongFirst, TouchOrder::WeakFirst] {
        assert_eq!(order.to_string().parse(), Ok(order));
    }
    assert!(matches!("strong".parse::<TouchOrder>(), Err(Error::Spec { .. })));
}
